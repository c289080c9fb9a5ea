"""What figures depend on: the machine, the versions, the commit."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no types of its own

import flq
from benchmarks import workplace
from flq.local import binaries
from flq.settings import Embedded

FSYNC_WRITES = 50
FSYNC_BYTES = 8192
OUR_PACKAGES = ("numpy", "psycopg", "celery", "sqlalchemy")
PEER_PACKAGES = {
    "flwr": ("flwr", "numpy", "grpcio", "ray"),
    "procrastinate": ("procrastinate", "psycopg"),
    "pgqueuer": ("pgqueuer", "asyncpg", "uvloop"),
    "pgmq": ("pgmq", "psycopg"),
    "celery": ("celery", "kombu", "redis"),
}
"""Of each peer: its own package, whose version counts, and those that figures depend on."""

PEER_PROGRAMS = ("flwr", "ray", "procrastinate", "pgq", "celery")
ASK_VERSIONS = """
import json
from importlib.metadata import distributions
from importlib.resources import files
found = {found.name: found.version for found in distributions()}
if "pgmq" in found:  # what is measured is the SQL file, which its client brings
    found["pgmq"] = files("pgmq").joinpath("sql", "VERSION").read_text().strip()
print(json.dumps(found))
"""


def describe() -> dict[str, Any]:
    """The machine. `fsync_ms` is how long its disk takes for 8 KB; `load` is what it did before, in processes."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "fsync_ms": round(_fsync_milliseconds(), 2),
        "load": round(os.getloadavg()[0], 2),
    }


def versions(*, peers: bool) -> dict[str, Any]:
    """The versions of all that takes part."""
    ours = {
        "flq": flq.__version__,
        "postgres": _server_version(binaries.postgres(Embedded()) / "postgres"),
        "valkey": _server_version(binaries.valkey(Embedded())),
        **{name: metadata.version(name) for name in OUR_PACKAGES},
    }
    return {"flq": ours, **_peer_versions()} if peers else {"flq": ours}


def commit() -> dict[str, Any]:
    """The commit that is measured, and whether files differ from it."""
    head = _first_line("git", "-C", str(workplace.ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "-C", str(workplace.ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"commit": head or None, "modified": bool(changed)}


def peers_installed() -> bool:
    """Whether `make peers` was here."""
    return all((workplace.PEERS / "bin" / program).exists() for program in PEER_PROGRAMS)


def _peer_versions() -> dict[str, dict[str, str]]:
    said = _first_line(str(workplace.PEERS / "bin" / "python"), "-c", ASK_VERSIONS)
    found = json.loads(said) if said else {}
    return {
        peer: {name: found[name] for name in packages if name in found}
        for peer, packages in PEER_PACKAGES.items()
        if peer in found
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _fsync_milliseconds() -> float:
    """The median time to write 8 KB and have it on the disk that the benchmarks work on."""
    took = []
    with workplace.folder("fsync") as folder, (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(FSYNC_WRITES):
            started = time.perf_counter()
            file.write(bytes(FSYNC_BYTES))
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def _server_version(program: Path) -> str:
    said = _first_line(str(program), "--version")
    number = re.search(r"\d+(\.\d+)+", said)
    return number[0] if number else said


def _first_line(*command: str) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.strip().partition("\n")[0]
