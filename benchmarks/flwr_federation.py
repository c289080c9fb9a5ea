"""Flower (flwr), driven as its documentation says: a SuperLink and SuperNodes on loopback, runs by `flwr run`.

All settings are its defaults, with two exceptions: it does not install what apps depend on when they start (that would
be counted against it), and it sends no telemetry; in a simulation, a third: a client takes one core, not two, so that
as many compute at once as there are cores. Its state lives in memory, which is its default and fastest.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from benchmarks import processes, workplace
from benchmarks.failure import BenchmarkError
from benchmarks.federation import Outcome, read_report

APP = workplace.APPS / "flwr_rounds"
AGENT = workplace.HERE / "flwr_agent.py"
CONNECTION = "bench"
START_PATIENCE = 300.0
RUN_PATIENCE = 1800.0
AGENT_PATIENCE = 5.0
ASK_PAUSE = 0.25
TAIL = 15
CORES_OF_A_CLIENT = 1
"""Of a simulated one; the default, 2, would leave a core unused here and there."""


class Agent:
    """A process that asks Flower (flwr) how it is; see `flwr_agent`."""

    def __init__(self, address: str, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            [_program("python"), "-P", str(AGENT), address], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip

    def ask(self, question: str) -> dict[str, Any]:
        """Ask; raises `OSError` or `ValueError` if there is no answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it: it ends when there are no more questions."""
        try:
            self._process.communicate(timeout=AGENT_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class FlwrFederation:
    """One SuperLink and its SuperNodes, with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder / "home"
        self._home.mkdir()
        self._stack = ExitStack()
        self._servers: list[subprocess.Popen[bytes]] = []
        self._agent: Agent | None = None
        self._address = ""

    def up(self, nodes: int) -> float:
        """Start it; returns the seconds until all nodes were online."""
        started = time.perf_counter()
        first, *others = _free_ports(nodes + 1)
        self._start_superlink(first)
        for index, port in enumerate(others):
            config = f"partition-id={index} num-partitions={nodes}"
            self._start("supernode", "--superlink", self._address, "--port", str(port), "--node-config", config)
        self._until(lambda: self._ask("nodes").get("online") == nodes, f"{nodes} nodes of Flower (flwr) are online")
        took = time.perf_counter() - started
        self._until(lambda: self._superexecs() > nodes, "every SuperExec of Flower (flwr) runs")
        return took

    def roots(self) -> list[int]:
        """The processes that all others of the federation descend from."""
        return [server.pid for server in self._servers]

    def run(self, *, rounds: int, nodes: int, floats: int) -> Outcome:
        """Run the app, typed → finished."""
        report = self._folder / f"report-{time.time_ns()}.json"
        config = f'rounds={rounds} nodes={nodes} floats={floats} report="{report}"'
        command = [
            _program("flwr"), "run", str(APP), CONNECTION, "--format", "json", "--run-config", config,
            *self._run_options(nodes),
        ]  # fmt: skip
        typed = time.time()
        done = subprocess.run(
            command, env=self._environment(), cwd=self._folder, capture_output=True, text=True, check=False
        )
        number = re.search(r'"run-id":\s*"(\d+)"', done.stdout)
        if number is None:
            raise BenchmarkError(f"`flwr run` failed:\n{done.stdout}{done.stderr}")
        finished = self._finish(number[1])
        return Outcome(typed, finished, read_report(report, rounds=rounds, nodes=nodes))

    def end(self) -> None:
        """Stop it."""
        if self._agent is not None:
            self._agent.close()
        # the pid of one that has ended may be another process's by now
        processes.end(processes.family(server.pid for server in self._servers if server.poll() is None))
        processes.end(processes.marked("FLWR_HOME", str(self._home)))
        for server in self._servers:
            server.wait()
        self._stack.close()

    def _run_options(self, nodes: int) -> Sequence[str]:  # noqa: ARG002 - for those that need it
        return ()

    def _finish(self, number: str) -> float:
        """Wait for the end of the run, and return when it was. Raises `BenchmarkError` if it did not complete."""
        answers: list[dict[str, Any]] = []

        def finished() -> bool:
            answers.append(self._ask(f"run {number}"))
            return answers[-1].get("status") == "finished"

        self._until(finished, f"run {number} of Flower (flwr) has finished", patience=RUN_PATIENCE, pause=ASK_PAUSE)
        found = answers[-1]
        if found["outcome"] != "completed":
            raise BenchmarkError(f"run {number} of Flower (flwr): {found}\n{self._tail()}")
        return datetime.fromisoformat(found["finished_at"]).timestamp()

    def _ask(self, question: str) -> dict[str, Any]:
        if self._agent is None:
            raise BenchmarkError("Flower (flwr) is not up")
        try:
            return self._agent.ask(question)
        except (OSError, ValueError) as exc:
            raise BenchmarkError(f"Flower (flwr) cannot be asked: {exc}\n{self._tail()}") from exc

    def _until(
        self, condition: Callable[[], object], what: str, *, patience: float = START_PATIENCE, pause: float = 0.1
    ) -> None:
        def checked() -> bool:
            ended = [server.args for server in self._servers if server.poll() is not None]
            if ended:
                raise BenchmarkError(f"a process of Flower (flwr) has ended: {ended[0]!r}\n{self._tail()}")
            return bool(condition())

        processes.until(checked, what, patience=patience, pause=pause)

    def _superexecs(self) -> int:
        family = processes.family(self.roots())
        return sum(
            "flower-superexec" in argument for process in family for argument in processes.arguments(process)[:2]
        )

    def _configure(self) -> None:
        lines = (
            "[superlink]",
            f'default = "{CONNECTION}"',
            f"[superlink.{CONNECTION}]",
            f'address = "{self._address}"',
            "insecure = true",
        )
        (self._home / "config.toml").write_text("\n".join(lines), encoding="utf-8")

    def _start_superlink(self, port: int, *options: str) -> None:
        """Start it, and wait until it answers."""
        self._address = f"127.0.0.1:{port}"
        self._configure()
        self._start("superlink", "--port", str(port), "--disable-runtime-dependency-installation", *options)
        self._start_agent()
        self._until(lambda: "online" in self._ask("nodes"), "the SuperLink of Flower (flwr) answers")

    def _start(self, kind: str, *arguments: str) -> None:
        command = [_program(f"flower-{kind}"), "--insecure", *arguments]
        log = self._stack.enter_context((self._folder / f"{kind}-{len(self._servers)}.log").open("ab"))
        self._servers.append(
            subprocess.Popen(
                command, env=self._environment(), cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        )

    def _start_agent(self) -> None:
        log = self._stack.enter_context((self._folder / "agent.log").open("ab"))
        self._agent = Agent(self._address, self._environment(), log)

    def _environment(self) -> dict[str, str]:
        programs = str(workplace.PEERS / "bin")
        return {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    def _tail(self) -> str:
        """The end of each log."""
        logs = sorted(self._folder.glob("*.log"))
        ends = (log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:] for log in logs)
        return "\n".join(line for lines in ends for line in lines)


class FlwrSimulation(FlwrFederation):
    """One SuperLink that simulates: each run starts Ray, whose processes do the work of all nodes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ray = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))

    def up(self, nodes: int) -> float:  # noqa: ARG002 - a run says how many nodes it has
        """Start it; returns the seconds until the SuperLink answered."""
        started = time.perf_counter()
        (port,) = _free_ports(1)
        self._start_superlink(port, "--simulation")
        took = time.perf_counter() - started
        self._until(lambda: self._superexecs() > 0, "the SuperExec of Flower (flwr) runs")
        return took

    def _run_options(self, nodes: int) -> Sequence[str]:
        return "--federation-config", f"num-supernodes={nodes} client-resources-num-cpus={CORES_OF_A_CLIENT}"

    def _environment(self) -> dict[str, str]:
        # Ray puts its sockets there; their paths must be short
        return {**super()._environment(), "RAY_TMPDIR": self._ray}


@contextmanager
def federation(kind: type[FlwrFederation] = FlwrFederation) -> Iterator[FlwrFederation]:
    """A federation, not up yet; nothing of it is left after the block."""
    with workplace.folder("flwr") as folder:
        found = kind(folder)
        try:
            yield found
        finally:
            found.end()


def _program(name: str) -> str:
    return str(workplace.PEERS / "bin" / name)


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on: all are held until the last one is found."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [int(found.getsockname()[1]) for found in sockets]
