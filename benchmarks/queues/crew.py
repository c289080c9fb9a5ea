"""The worker processes of one side: they get their orders at the same time, and are asked what they did."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from benchmarks import workplace
from benchmarks.failure import BenchmarkError

PATIENCE = 120.0
"""An order that takes longer, in seconds, will never be done."""

END_PATIENCE = 10.0
LOG_LINES = 20


class Worker:
    """One process that takes orders; see `benchmarks.queues.orders`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=workplace.ROOT,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
            )

    def order(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: the answer tells
            self._process.stdin.write(json.dumps({"order": name, **arguments}).encode() + b"\n")

    def answer(self) -> Any:
        """What came of the order. Raises `BenchmarkError` with the end of its log if it failed."""
        assert self._process.stdout is not None
        file, line, give_up = self._process.stdout.fileno(), b"", time.monotonic() + PATIENCE
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([file], [], [], max(give_up - time.monotonic(), 0))
            if not ready:
                raise BenchmarkError(f"a worker does not answer within {PATIENCE:.0f} s:\n{self._said()}")
            read = os.read(file, 1 << 16)
            if not read:
                with suppress(subprocess.TimeoutExpired):  # it has yet to say why
                    self._process.wait(END_PATIENCE)
                raise BenchmarkError(f"a worker has ended:\n{self._said()}")
            line += read
        return json.loads(line)

    def end(self) -> None:
        """End it: politely, since no order follows, or by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _said(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


class Crew:
    """The workers of one side."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, size: int, logs: Path) -> None:
        self.size = size
        self._workers: list[Worker] = []
        self._command, self._environment, self._logs = command, environment, logs

    def __enter__(self) -> Self:
        for number in range(self.size):
            log = self._logs / f"{self._command[-1]}-{number}.log"
            self._workers.append(Worker(self._command, self._environment, log))
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def first(self, order: str, **arguments: Any) -> Any:
        """What one of them answers; the others rest."""
        self._workers[0].order(order, arguments)
        return self._workers[0].answer()

    def each(self, order: str, **arguments: Any) -> list[Any]:
        """What all answer to the same order, carried out at the same time."""
        return self.all(order, [arguments] * self.size)

    def all(self, order: str, arguments: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The same, each with arguments of its own."""
        for worker, own in zip(self._workers, arguments, strict=True):
            worker.order(order, own)
        return [worker.answer() for worker in self._workers]
