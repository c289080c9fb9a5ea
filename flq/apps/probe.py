"""Loads one half of an app, to see whether it can be: `python -m flq.apps.probe serverapp|clientapp FOLDER`.

It runs the app's code, and so is a process of its own. The answer is one line of JSON on stdout, where nothing that the
app prints goes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from flq.apps.loader import load_clientapp, load_serverapp
from flq.errors import FlqError


def main(arguments: list[str]) -> int:
    """Answer `{"provides": [...]}`, or `{"error": ..., "hint": ...}` if the app cannot be loaded; returns 0."""
    half, folder = arguments
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answer = json.dumps(_answer(half, Path(folder))) + "\n"
    with os.fdopen(answers, "wb") as pipe:
        pipe.write(answer.encode())
    return 0


def _answer(half: str, folder: Path) -> dict[str, Any]:
    try:
        return {"provides": _serverapp(folder) if half == "serverapp" else _clientapp(folder)}
    except FlqError as exc:
        return {"error": exc.message, "hint": exc.hint}


def _serverapp(folder: Path) -> list[str]:
    if not load_serverapp(folder).has_main:
        raise FlqError("the ServerApp has no main function", hint="register one with @app.main()")
    return ["main"]


def _clientapp(folder: Path) -> list[str]:
    types = load_clientapp(folder).message_types
    if not types:
        raise FlqError("the ClientApp answers no messages", hint="register a function with @app.train()")
    return types


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
