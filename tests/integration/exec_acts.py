"""What tests of SuperExec do: submit an app, launch it, look at what became of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # it has no types of its own
from celery import Celery

from flq.apps.bundle import pack
from flq.apps.project import load_project
from flq.exec.celery_app import create_app
from flq.exec.launcher import Launcher
from flq.exec.lifeline import Lifeline
from flq.exec.publisher import publisher
from flq.link import attempts
from flq.link.control import DbControl
from flq.link.database import Database
from flq.local import binaries
from flq.local.process import python, python_environment
from flq.local.valkey import answers
from flq.settings import embedded
from flq.wire.ids import RunId
from flq.wire.runs import FeedCursor, Job, RunRow, Submission
from flq.wire.status import Outcome
from tests.integration import link_acts
from tests.waiting import eventually

PROJECT = """
[project]
name = "tester"
version = "1.0"
dependencies = [{dependencies}]

[tool.flq.app]
serverapp = "tester.server:app"
clientapp = "tester.client:app"
"""

SERVER = """
import os, sys, time
from flq.apps import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
{body}
"""

FLQ = ("-m", "flq")

FOREVER = "print('here', flush=True)\nwhile True: time.sleep(0.01)"


def project(folder: Path, body: str, *, dependencies: str = "") -> Path:
    """An app project whose ServerApp's main is `body`."""
    package = folder / "tester"
    package.mkdir(parents=True, exist_ok=True)
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    (folder / "pyproject.toml").write_text(PROJECT.format(dependencies=dependencies))
    (package / "__init__.py").write_text("")
    (package / "server.py").write_text(SERVER.format(body=indented))
    (package / "client.py").write_text("from flq.apps import ClientApp\napp = ClientApp()\n")
    return folder


def submission(folder: Path, **changes: Any) -> Submission:
    """The submission of a project."""
    return replace(link_acts.submission(bundle=pack(load_project(folder)).data), **changes)


class Bench:
    """A launcher on the test's database, with the means to submit runs and look at them."""

    def __init__(self, dsn: str, db: Database, folder: Path) -> None:
        self.dsn = dsn
        self.db = db
        self.folder = folder
        self.home = folder / "home"
        self.control = DbControl(dsn)
        self.superexec = link_acts.superexec(db)
        self.lifeline = Lifeline()
        self.launcher = self.make_launcher()

    def make_launcher(self, *, spare: bool = False) -> Launcher:
        """Another launcher of the same SuperExec."""
        return Launcher(
            dsn=self.dsn,
            process_id=self.superexec.process_id,
            home=self.home,
            lifeline=self.lifeline,
            threads=1,
            spare=spare,
        )

    def submit(self, body: str, *, dependencies: str = "", **changes: Any) -> RunId:
        """Submit a run whose main is `body`."""
        folder = project(self.folder / "app", body, dependencies=dependencies)
        return self.control.submit(submission(folder, **changes)).run_id

    def job(self) -> Job:
        """The job of the pending run."""
        (job,) = attempts.allocate(self.db)
        return job

    def launch(self, job: Job | None = None) -> str:
        """Launch the pending run, and see it to its end."""
        job = job or self.job()
        return self.launcher.launch(run_id=job.run_id, attempt=job.attempt, job_id=job.job_id)

    def launch_and(self, act: Callable[[int], object], *, printed: str = "here") -> str:
        """Launch the pending run; `act` is called in a thread, with the ServerApp's pid, when it has `printed`."""
        job = self.job()

        def interfere() -> None:
            eventually(lambda: ("INFO", printed) in self.log(job.run_id), what="the app's output")
            act(self.pid(job.run_id))

        thread = threading.Thread(target=interfere)
        thread.start()
        try:
            return self.launch(job)
        finally:
            thread.join()

    def row(self, run_id: RunId) -> RunRow:
        """A run."""
        return self.control.run(str(run_id))

    def log(self, run_id: RunId, source: str = "serverapp") -> list[tuple[str, str]]:
        """Levels and texts of a run's log."""
        lines = self.control.logs(str(run_id), FeedCursor()).lines
        return [(line.level, line.text) for line in lines if line.source == source]

    def pid(self, run_id: RunId) -> int:
        """The pid of a run's ServerApp."""
        found = self.control.attempts(str(run_id))[-1].pid
        assert found is not None
        return found

    def close(self) -> None:
        """Give back all."""
        self.launcher.close()
        self.lifeline.cut()
        self.control.close()


class SuperExec:
    """A running SuperExec, a dispatcher for it, and a look at what comes of it."""

    def __init__(
        self, dsn: str, broker: str, db: Database, folder: Path, *options: str, program: Sequence[str] = FLQ
    ) -> None:
        self.dsn, self.broker, self.db, self.folder = dsn, broker, db, folder
        self.control = DbControl(dsn)
        self.publish = publisher(broker)
        self.celery: Celery = create_app(broker)
        self.log = folder / "superexec.log"
        self.process = self.start(*options, program=program)

    def start(self, *options: str, program: Sequence[str] = FLQ) -> subprocess.Popen[bytes]:
        """Start another one: `python`, `program`, and then the command."""
        read, write = os.pipe()
        environ = {
            "FLQ_DSN": self.dsn,
            "FLQ_BROKER": self.broker,
            "FLQ_HOME": str(self.folder / "home"),
            "FLQ_READY_FD": str(write),
        }
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                python(*program, "superexec", "--slots", "2", *options),
                env=python_environment(environ),
                pass_fds=(write,),
                stdout=log,
                stderr=log,
            )
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.readline() == b"ready\n", self.log.read_text()
        return process

    def run(self, body: str) -> tuple[RunId, Job]:
        """Submit a run and dispatch it."""
        row = self.control.submit(submission(project(self.folder / "app", body)))
        (job,) = attempts.allocate(self.db)
        self.publish(job)
        return row.run_id, job

    def begun(self, body: str = FOREVER) -> tuple[RunId, Job]:
        """The same, until its app has printed `here`."""
        run_id, job = self.run(body)
        eventually(lambda: "here" in self.printed(run_id), what="the app's output")
        return run_id, job

    def printed(self, run_id: RunId) -> list[str]:
        """The lines that a run has printed."""
        return [line.text for line in self.control.logs(str(run_id), FeedCursor()).lines]

    def outcome(self, run_id: RunId) -> Outcome | None:
        """A run's outcome, once it has one."""
        return self.control.run(str(run_id)).outcome

    def serverapp(self, run_id: RunId) -> int:
        """The pid of a run's ServerApp."""
        pid = self.control.attempts(str(run_id))[-1].pid
        assert pid is not None
        return pid

    def stop(self) -> None:
        """Kill it, and give back all."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()
        self.celery.close()


class Broker:
    """A Valkey of the test's own, which keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "valkey.sock"
        self.address = f"redis+socket://{self.socket}"
        self._folder = folder
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(
            [
                str(binaries.valkey(embedded(self._folder))),
                *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder), "--save", ""),
            ],
            stdout=subprocess.DEVNULL,
        )
        eventually(lambda: answers(self.socket), what="the broker")
        return self.process

    def command(self, *words: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket))
            client.sendall(" ".join(words).encode() + b"\r\n")
            return client.recv(4096)

    def jobs(self) -> int:
        """How many jobs wait."""
        return int(self.command("LLEN", "flq.launch").strip(b":\r\n"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def parent_of(pid: int) -> int:
    """The pid of a process's parent."""
    return int(psutil.Process(pid).ppid())


def descendants_of(pid: int) -> list[int]:
    """The pids of a process's children, their children and so on."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]
