"""Aggregates recorded replies, for the benchmark `aggregation`: a process of its own, in the environment of its side.

    python -P aggregation_agent.py SIDE MODELS ARRAYS BYTES THREADS

`SIDE` is flq or flwr. There are MODELS replies, each with a float32 model of ARRAYS equal arrays and BYTES in all. Each
line on stdin is a question, each line on stdout its answer as JSON: `time` aggregates replies that are held in memory,
and answers the seconds; `memory` answers how many bytes an aggregation needs, while replies come in as they do in
a run: in Flower (flwr) as messages with their payload, in flq as messages whose arrays are read when they are folded.
Both answer the sum of the new model.
"""

from __future__ import annotations

import gc
import importlib
import json
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PAUSE = 0.002


class Side:
    """The replies of one framework, and how it aggregates them."""

    def __init__(self, name: str, models: int, arrays: int, size: int, threads: int) -> None:
        self.name = name
        self.models = models
        self.shape = (arrays, size // (4 * arrays))
        self.app = importlib.import_module("flwr.app" if name == "flwr" else "flq.apps")
        strategies = importlib.import_module("flwr.serverapp.strategy" if name == "flwr" else "flq.apps.strategy")
        self.options: dict[str, Any] = {"threads": threads} if name == "flq" else {}
        self.strategy = strategies.FedAvg(**self.options)
        if name == "flwr":
            identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
            identity.task_id, identity.run_id, identity.node_id = 1, 1, 1  # messages are made in a run only
            importlib.import_module("logging").getLogger("flwr").setLevel("ERROR")
        self.held: list[Any] = []

    def model(self, number: int) -> np.ndarray:
        """The values of a model: one row for each array, different in each model."""
        return np.random.default_rng(number).random(self.shape, dtype=np.float32)

    def record(self, number: int) -> Any:
        """A model in memory."""
        return self.app.ArrayRecord(list(self.model(number)))

    def reply(self, number: int, arrays: Any) -> Any:
        """A reply with a model."""
        app = self.app
        request = app.Message(app.RecordDict(), dst_node_id=2 + number, message_type="train")
        metrics = app.MetricRecord({"num-examples": 10 + number})
        return app.Message(app.RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=request)

    def time(self) -> dict[str, float]:
        """One aggregation of the replies in memory."""
        if not self.held:
            self.held = [self.reply(number, self.record(number)) for number in range(self.models)]
        gc.collect()
        started = time.perf_counter()
        arrays, _ = self.strategy.aggregate_train(1, self.held)
        took = time.perf_counter() - started
        return {"seconds": took, "sum": total(arrays)}

    def memory(self) -> dict[str, float]:
        """One aggregation of replies that come in, and the memory that it needs."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{number}.npy" for number in range(self.models)]
            for number, file in enumerate(files):
                np.save(file, self.model(number))
            gc.collect()
            with Peak() as peak:
                replies = self._lazy(files) if self.name == "flq" else self._complete(files)
                arrays, _ = self.strategy.aggregate_train(1, replies)
            return {"bytes": peak.bytes, "sum": total(arrays)}

    def _complete(self, files: Iterable[Path]) -> list[Any]:
        """As `Grid.send_and_receive` of Flower (flwr) returns them: all are there, with their payloads."""
        replies = []
        for number, file in enumerate(files):
            rows = np.load(file, mmap_mode="r")
            replies.append(self.reply(number, self.app.ArrayRecord(list(rows))))
        return replies

    def _lazy(self, files: Iterable[Path]) -> Iterator[Any]:
        """As `Grid.send_and_receive` of flq returns them: one by one, and their arrays are read when they are used."""
        for number, file in enumerate(files):
            size = self.shape[1]
            rows = np.load(file, mmap_mode="r")
            arrays = {
                str(row): self.app.Array.lazy(dtype="float32", shape=(size,), load=reader(rows, row))
                for row in range(self.shape[0])
            }
            yield self.reply(number, self.app.ArrayRecord(arrays))


def reader(rows: np.ndarray, row: int) -> Callable[[], memoryview]:
    """Reads one array into memory of its own."""
    return lambda: np.array(rows[row]).data


def total(arrays: Any) -> float:
    """The sum of a model, by which both sides can be compared."""
    return float(sum(array.numpy().sum(dtype=np.float64) for array in arrays.values()))


class Peak:
    """The most memory that this process has above what it began with, of what is neither of a file nor shared."""

    def __init__(self) -> None:
        self._base = private()
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:  # noqa: PYI034 - nobody derives from it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._note()

    @property
    def bytes(self) -> int:
        """The most so far."""
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(PAUSE):
            self._note()

    def _note(self) -> None:
        self._peak = max(self._peak, private() - self._base)


def private() -> int:
    """The anonymous memory of this process in bytes."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def main(name: str, *numbers: str) -> None:
    """Answer until stdin ends."""
    models, arrays, size, threads = map(int, numbers)
    side = Side(name, models, arrays, size, threads)
    for line in sys.stdin:
        answer = {"time": side.time, "memory": side.memory}[line.strip()]()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
