"""What a launcher and the ServerApp's process tell each other: credentials one way, output and a report the other.

The process inherits two pipes. It reads its credentials from the first, until its end; it writes one report to the
second when `main` is over. Both are JSON. Light on purpose: the process imports it before anything else.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

MARK = "\x1e"
"""Starts a line of output that names its level: MARK, the level, MARK, the text. Other lines are `INFO`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What makes a process the ServerApp of one attempt of a run. Never in its environment or its arguments.

    `install_deps` allows it to install what its app depends on.
    """

    dsn: str = field(repr=False)
    run_id: int
    token: int = field(repr=False)
    attempt: int
    home: Path
    install_deps: bool = False

    def encode(self) -> bytes:
        """As the bytes that the process reads."""
        return json.dumps({**asdict(self), "home": str(self.home)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Credentials:
        """The opposite of `encode`."""
        known = json.loads(data)
        return cls(**{**known, "home": Path(known["home"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How `main` ended. `error` is the traceback in the app's own files, for people.

    `fenced` says that the attempt found itself replaced, `lost` that the SuperLink could not be reached any more.
    """

    outcome: Literal["completed", "failed", "fenced", "lost"]
    reason: str | None = None
    error: str | None = None

    def encode(self) -> bytes:
        """As the bytes that the launcher reads."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Report | None:
        """The opposite of `encode`; None for what a process left that died over it."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


def work_folder(home: Path, run: str) -> Path:
    """Where the ServerApp of a run works; what its app leaves there stays, an empty folder does not."""
    return home / "work" / run
