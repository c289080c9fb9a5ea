"""Where benchmarks put their files: on the disk of the checkout, since a temporary folder may lie in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
WORK = HERE / ".work"
RESULTS = HERE / "results"
DOCS = ROOT / "docs" / "benchmarks.md"
APPS = HERE / "apps"
PEERS = ROOT / ".venv-peers"


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder that is gone after the block. Others may pass through it: Postgres of root runs as another user."""
    WORK.mkdir(exist_ok=True)
    found = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=WORK))
    found.chmod(0o711)
    try:
        yield found
    finally:
        shutil.rmtree(found, ignore_errors=True)
