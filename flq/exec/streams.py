"""The standard streams, signals and loggers of a ServerApp's process."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys

from flq.exec.handover import MARK

FORMAT = "%(name)s: %(message)s"


def start_clean(*private: int) -> None:
    """Undo what a process inherits from a Celery child, and keep the `private` descriptors from the app's own children.

    Output goes line by line in UTF-8, whatever the locale says. Log records of the app go to the same stream, each
    line with its level; so do warnings. A crash in native code leaves the Python stack in the log.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    for descriptor in private:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the standard library's signature
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    faulthandler.enable()
    handler = _MarkedHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)


def tell(text: str, *, level: str) -> None:
    """Print `text` as lines of a level."""
    for line in text.splitlines() or [""]:
        sys.stderr.write(f"{MARK}{level}{MARK}{line}\n")


class _MarkedHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tell(self.format(record), level=_level(record.levelno))
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)


def _level(number: int) -> str:
    steps = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO)
    return logging.getLevelName(next((step for step in steps if number >= step), logging.DEBUG))
