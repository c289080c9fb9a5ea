"""What a user sees of a mistake: one error, the way out, an exit code, and no traceback of ours."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.acceptance.flq_command import Flq

OUR_FRAME = re.compile(r'File ".*(/flq/\w+/|site-packages)')


@dataclass(frozen=True)
class Mistake:
    """The error that a command ended with, and all that it printed."""

    message: str
    hint: str
    out: str
    err: str


def mistake(flq: Flq, *arguments: str | Path, code: int, **options: Any) -> Mistake:
    """Run a command that must fail with `code`, one error and the way out."""
    done = flq.ended(*arguments, **options)
    return seen(done.returncode, done.stdout, done.stderr, code=code)


def seen(returncode: int, out: str, err: str, *, code: int) -> Mistake:
    """Judge what a command has printed that must fail with `code`."""
    assert returncode == code, f"{returncode}\n{out}\n{err}"
    assert "Traceback" not in out + err, out + err
    _, *told = re.split(r"^error: ", err, flags=re.MULTILINE)
    assert len(told) == 1, err
    message, _, hint = told[0].partition("\nhint: ")
    return Mistake(message.strip(), hint.strip(), out, err)


def as_json(flq: Flq, *arguments: str | Path, code: int, **options: Any) -> dict[str, Any]:
    """The error in the last line of a command with `--json` that must fail with `code`."""
    done = flq.ended(*arguments, "--json", **options)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    envelope = json.loads(done.stdout.splitlines()[-1])
    assert (envelope["schema_version"], envelope["status"]) == (1, "error")
    error: dict[str, Any] = envelope["error"]
    assert error.keys() == {"code", "message", "hint"}
    return error


@dataclass(frozen=True)
class Failed:
    """A run that failed: what was shown of it, and why it says that it failed."""

    reason: str
    out: str
    err: str

    @property
    def shown(self) -> str:
        """All that was shown, whatever the stream."""
        return self.out + self.err


def failed_run(flq: Flq, app: Path, name: str, *options: str) -> Failed:
    """Stream a run that must fail by its app: no frame of ours is shown, and the run is finished with a reason."""
    done = flq.ended("run", app, "--stream", "--name", name, *options)
    out, err = done.stdout, done.stderr
    assert done.returncode == 1, f"{done.returncode}\n{out}\n{err}"
    assert not OUR_FRAME.search(out + err), out + err
    (row,) = flq.sql(f"select status, outcome, reason from flq.runs where run = '{name}'")
    assert (row["status"], row["outcome"]) == ("finished", "failed")
    assert f"{name} failed after" in err
    assert f"flq show {name}" in err
    return Failed(row["reason"], out, err)
