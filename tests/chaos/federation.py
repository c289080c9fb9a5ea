"""A federation in processes that are started again whenever they die, as a service manager does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types of its own

from flq.local import federation as servers
from flq.local.process import python, python_environment
from flq.local.state import Addresses
from flq.settings import FAILPOINTS
from tests.cluster import running
from tests.waiting import eventually

NODES = 3
SLOTS = 2
DISK_BYTES = 512 << 20
"""The disk that holds the SuperNode's files, if it is one of its own."""

RESTART_PAUSE = 0.1
LOOK_PAUSE = 0.02

SUPERLINK, SUPEREXEC, SECOND_SUPEREXEC, SUPERNODE, TWIN = "superlink", "superexec", "second", "supernode", "twin"


@dataclass(slots=True)
class Service:
    """A process that is kept running. `kept` is false while it is to stay down; `started` are its starts, in time."""

    name: str
    arguments: Sequence[str]
    log: Path
    kept: bool = True
    process: subprocess.Popen[bytes] | None = None
    started: list[tuple[float, int]] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """The pid of the process, if it lives."""
        process = self.process
        return process.pid if process is not None and process.poll() is None else None


class Federation:
    """SuperLink, SuperExec and a SuperNode with three nodes, on servers of their own below `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.orders = home / "orders"
        self.disk = home / "disk"
        self._services: dict[str, Service] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper of {home}", daemon=True)
        addresses = servers.addresses(home)
        assert addresses is not None
        self.addresses: Addresses = addresses

    @property
    def dsn(self) -> str:
        """Where its database is."""
        return self.addresses.dsn

    def start(self) -> None:
        """Start the processes and the thread that keeps them running."""
        for name in (SUPERLINK, SUPEREXEC, SUPERNODE):
            self.add(name)
        self._keeper.start()

    def add(self, name: str) -> Service:
        """Start one more process, and keep it running."""
        with self._lock:
            service = Service(name, self._arguments(name), self.home / "log" / f"{name}.log")
            self._services[name] = service
            self._launch(service)
        return service

    def remove(self, name: str) -> None:
        """End a process for good; it may be one that has ended, or was never there."""
        with self._lock:
            service = self._services.pop(name, None)
        if service is not None and service.process is not None:
            service.kept = False
            end(service.process)

    def service(self, name: str) -> Service:
        """The process called `name`."""
        return self._services[name]

    def has(self, name: str) -> bool:
        """Whether there is a process called `name`."""
        return name in self._services

    def hold(self, name: str) -> None:
        """Leave a process down when it dies."""
        self._services[name].kept = False

    def resume(self, name: str) -> None:
        """Keep a process running again."""
        self._services[name].kept = True

    def server(self, name: str) -> int:
        """The pid of `postgres` or `valkey`."""

        def pid() -> int | None:
            found = {process.name: process for process in servers.status(self.home).processes}.get(name)
            return found.pid if found is not None and found.state == "running" else None

        eventually(pid, timeout=60, what=f"{name} to run")
        found = pid()
        assert found is not None
        return found

    def family(self) -> list[psutil.Process]:
        """The living processes that the federation's own have started, and these."""
        found = {}
        for service in list(self._services.values()):
            with suppress(psutil.NoSuchProcess):
                if service.pid is not None:
                    root = psutil.Process(service.pid)
                    found.update({process.pid: process for process in (root, *root.children(recursive=True))})
        return list(found.values())

    def marked(self) -> list[psutil.Process]:
        """The living processes that have this federation's orders in their environment, whoever has started them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get(FAILPOINTS) == str(self.orders)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def strays(self) -> list[psutil.Process]:
        """The living processes that should not: of this federation, but nobody's children."""
        ours = {process.pid for process in self.family()}
        return [process for process in self.marked() if process.pid not in ours and process.pid != os.getpid()]

    def stop(self) -> None:
        """End all of its processes; those that are left over afterwards are an error."""
        self._over.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for service in self._services.values():  # all at once: each takes its time
            if service.process is not None:
                _ask_to_end(service.process)
        for name in list(self._services):
            self.remove(name)
        eventually(lambda: not self.marked(), timeout=20, what="the end of all processes")

    def _arguments(self, name: str) -> Sequence[str]:
        hosts = ("--name", "node", "--nodes", str(NODES), "--slots", str(SLOTS), "--cache", str(self.disk / "node"))
        arguments: dict[str, Sequence[str]] = {
            SUPERLINK: (SUPERLINK,),
            SUPEREXEC: (SUPEREXEC, "--slots", "1"),
            SECOND_SUPEREXEC: (SUPEREXEC, "--slots", "1", "--name", SECOND_SUPEREXEC),
            SUPERNODE: (SUPERNODE, *hosts),
            TWIN: (SUPERNODE, *hosts),
        }
        return python("-m", "flq", *arguments[name])

    def _launch(self, service: Service) -> None:
        environment = python_environment(
            {
                "FLQ_HOME": str(self.home),
                "FLQ_DSN": self.dsn,
                "FLQ_BROKER": self.addresses.broker,
                "FLQ_FEDERATION": None,
                "FLQ_READY_FD": None,
                FAILPOINTS: str(self.orders),
            }
        )
        with service.log.open("ab") as log:
            service.process = subprocess.Popen(
                service.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.home,
                start_new_session=True,
            )  # fmt: skip
        service.started.append((time.time(), service.process.pid))

    def _keep(self) -> None:
        dead_since: dict[str, float] = {}
        while not self._over.wait(LOOK_PAUSE):
            with self._lock:
                for service in self._services.values():
                    if not service.kept or service.pid is not None:
                        dead_since.pop(service.name, None)
                    elif time.monotonic() - dead_since.setdefault(service.name, time.monotonic()) > RESTART_PAUSE:
                        del dead_since[service.name]
                        self._launch(service)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill it if it does not."""
    _ask_to_end(process)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()


@contextmanager
def federation(*, own_disk: bool = False) -> Iterator[Federation]:
    """A federation that is up; nothing of it is left after the block.

    `own_disk` gives the SuperNode's files a small disk of their own, which takes root.
    """
    outer = Path(tempfile.mkdtemp(prefix="flq-chaos-"))
    outer.chmod(0o755)
    home = outer / "home"
    (home / "orders").mkdir(parents=True)
    (home / "disk").mkdir()
    (home / "config.toml").write_text("[embedded.postgres]\nfsync = false\n")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, outer)
        if own_disk:
            stack.enter_context(_small_disk(home / "disk"))
        stack.enter_context(running(home))
        found = Federation(home)
        stack.callback(found.stop)
        found.start()
        yield found


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
