"""Celery Flower on a federation's broker."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flq.exec.publisher import publisher
from flq.local.process import python, python_environment
from flq.wire.ids import RunId
from flq.wire.runs import Job
from tests.waiting import eventually


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def api(dsn: str, broker: str, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    log = tmp_path / "monitor.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            python("-m", "flq", "monitor", "--port", str(port)),
            env=python_environment({"FLQ_DSN": dsn, "FLQ_BROKER": broker, "FLQ_HOME": str(tmp_path)}),
            stdout=output,
            stderr=output,
        )
    found = f"http://127.0.0.1:{port}/api"
    try:
        eventually(lambda: fetch(found, "workers") is not None or process.poll() is not None, what="the API")
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        process.terminate()
        process.wait(20)


def fetch(api: str, what: str) -> Any:
    try:
        with urllib.request.urlopen(f"{api}/{what}", timeout=10) as answer:  # noqa: S310 - it is ours
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        return None


def test_it_lists_jobs_with_the_names_of_their_runs(api: str, broker: str):
    publish = publisher(broker)
    numbers = itertools.count()

    def listed() -> dict[str, Any]:
        # One after the other: what was published before the monitor listened is not in its list.
        publish(Job(run_id=RunId(5), name="brave-otter", attempt=2, job_id=f"job-{next(numbers)}"))
        return fetch(api, "tasks") or {}

    eventually(listed, what="a job in the list")
    job = next(iter(listed().values()))
    assert (job["name"], job["state"]) == ("flq.launch", "PENDING")
    assert job["kwargs"] == "{'run': 'brave-otter', 'run_id': 5, 'attempt': 2}"
