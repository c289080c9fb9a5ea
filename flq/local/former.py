"""Processes of a supervisor that was killed: waited for before the next one starts its own.

On Linux they got their parent-death signal and are on their way out; elsewhere they live on until they are told.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from flq import log
from flq.local.process import birth
from flq.local.state import Remain

GRACE = 20.0

_PAUSE = 0.05

_log = log.get(__name__)


def end(remains: Iterable[Remain], *, grace: float = GRACE) -> None:
    """Wait until these processes are gone; those that are not after `grace` seconds are killed."""
    alive = _alive(remains)
    for remain in alive:
        _log.info("%s (pid %d) of a killed supervisor still runs", remain.name, remain.pid)
        _signal(remain, signal.Signals(remain.signal))
    give_up = time.monotonic() + grace
    while alive and time.monotonic() < give_up:
        time.sleep(_PAUSE)
        alive = _alive(alive)
    for remain in alive:
        _log.warning("%s (pid %d) does not end and is killed", remain.name, remain.pid)
        _signal(remain, signal.SIGKILL)
    while _alive(alive):
        time.sleep(_PAUSE)


def _alive(remains: Iterable[Remain]) -> list[Remain]:
    return [remain for remain in remains if remain.birth and birth(remain.pid) == remain.birth]


def _signal(remain: Remain, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:
            os.killpg(remain.pid, number)
        else:
            os.kill(remain.pid, number)
