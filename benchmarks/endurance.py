"""The benchmark `endurance`: whether the last of many rounds costs what the first ones cost, in time and in memory.

One run of thousands of rounds with nothing to do in them. Private memory (what a process shares with no other) of
every process is noted twice a second; a process counts if it lived from the second tenth of the run to the last.

Memory that is mapped to be shared is not private, also where no other process has touched the page yet. It is
PostgreSQL's: its buffers, which are filled once and stay as large as they are set to be. The kernel counts a page of
them as private to the one backend that has used it last, or as shared, as backends come and go.

The rounds of hours pass in two minutes here. After autovacuum has been at its tables, a backend of PostgreSQL plans its
statements anew, for which it takes some hundred KB the first few times; so that comes every second instead of every
minute. A shorter run and a checkpoint before have the processes that stay load, plan and cache what they need.
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it has no types of its own
import psycopg

from benchmarks import flq_federation, processes
from benchmarks.failure import BenchmarkError
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Values
from flq.local import federation as embedded

NODES = 2
FLOATS = 2500
"""The model, as float32: 10 KB."""

ROUNDS = 5000
QUICK_ROUNDS = 300
WARM_UP = 0.2
"""How many rounds the run before has, as a part of those that are measured."""

CONFIG = '[embedded.postgres]\nautovacuum_naptime = "1s"\n'
SAMPLE_SECONDS = 0.5
PATIENCE = 1800.0

NOISE_BYTES = 256 << 10
"""Memory comes in pages and arenas: a process that has grown by less than this counts as one that has not."""

_NO_SHARED_MEMORY = re.compile(rb"^RssShmem:\s+0 kB", re.MULTILINE)
_MAPPING_OR_PRIVATE = re.compile(rb"^(?:[0-9a-f]+-[0-9a-f]+ ...([ps])|Private_(?:Clean|Dirty): +(\d+))", re.MULTILINE)

METRICS = (
    Metric("round", "one round", "s"),
    Metric("slower", "a round of the last tenth against one of the second", "times"),
    Metric("grown", "private memory in the last tenth against the second, of the process that grew most", "times"),
    Metric("memory", "private memory of all processes in the last tenth", "MB"),
)
LONGER_AT_MOST, GROWN_AT_MOST = 1.2, 1.05


def benchmark(*, quick: bool, peers: bool) -> Benchmark:  # noqa: ARG001 - every benchmark is asked the same
    """The benchmark. It has no peer: what is compared is flq with itself, an hour of rounds before."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    cell = f"{rounds} rounds, {NODES} nodes"
    return Benchmark(
        name="endurance",
        title="Many short rounds: 10 KB model, train and evaluate",
        metrics=METRICS,
        goals=(Goal(cell, "slower", at_most=LONGER_AT_MOST), Goal(cell, "grown", at_most=GROWN_AT_MOST)),
        cells=[Cell(cell, {"flq": partial(_side, rounds)})],
        settings={
            "rounds": rounds,
            "memory": f"Private_Clean + Private_Dirty of smaps without mappings of shared memory, median of a tenth; "
            f"less than {NOISE_BYTES >> 10} KB more counts as none",
            "before": f"a run of {_warm_up(rounds)} rounds on the same federation, and a checkpoint of PostgreSQL",
            "postgres": "autovacuum_naptime 1 s",
            "processes": "the supervisor and all its descendants, with each backend of PostgreSQL by itself",
        },
    )


@contextmanager
def _side(rounds: int) -> Iterator[Measure]:
    with flq_federation.federation() as federation:
        federation.home.mkdir()
        federation.home.joinpath("config.toml").write_text(CONFIG, encoding="utf-8")
        federation.up(NODES)
        processes.until_quiet(federation.roots(), "the federation")
        federation.run(rounds=_warm_up(rounds), nodes=NODES, floats=FLOATS, patience=PATIENCE)
        _checkpoint(federation)
        yield partial(_measure, federation, rounds)


def _measure(federation: flq_federation.FlqFederation, rounds: int) -> Values:
    with Memory(federation.roots()).watched() as memory:
        outcome = federation.run(rounds=rounds, nodes=NODES, floats=FLOATS, patience=PATIENCE)
    starts = [*map(float, outcome.report["starts"]), float(outcome.report["ended"])]
    second, last = tenth(starts, 1), tenth(starts, 9)
    grown = memory.growth(second, last)
    took = [after - before for before, after in pairwise(starts)]
    return {
        "round": took[1:],
        "slower": [statistics.median(_of_tenth(took, 9)) / statistics.median(_of_tenth(took, 1))],
        "grown": [max(ratio for ratio, _ in grown.values())],
        "memory": [sum(now for _, now in grown.values()) / 1e6],
        # no metrics, but they stand in the samples
        **{f"round, tenth {index + 1}": [statistics.median(_of_tenth(took, index))] for index in range(10)},
        **{f"grown, {name}": [ratio] for name, (ratio, _) in grown.items()},
        **{f"memory, {name}": [now / 1e6] for name, (_, now) in grown.items()},
    }


def _checkpoint(federation: flq_federation.FlqFederation) -> None:
    addresses = embedded.addresses(federation.home)
    assert addresses is not None, "it is up"
    with psycopg.connect(addresses.dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def _warm_up(rounds: int) -> int:
    return int(rounds * WARM_UP)


class Memory:
    """Notes the private memory of all processes of a family, while it is `watched`."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots = roots
        self._over = threading.Event()
        self.names: dict[int, str] = {}
        self.samples: dict[int, list[tuple[float, int]]] = defaultdict(list)

    @contextmanager
    def watched(self) -> Iterator[Memory]:
        """Note it twice a second until the end of the block."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()

    def growth(self, second: tuple[float, float], last: tuple[float, float]) -> dict[str, tuple[float, float]]:
        """How many times as much memory each process had in one span of time as in another before, and how much.

        Raises `BenchmarkError` if no process was there in both.
        """
        found = {}
        for pid, samples in self.samples.items():
            before, after = _median_within(samples, second), _median_within(samples, last)
            if before is not None and after is not None:
                ratio = after / before if after - before > NOISE_BYTES else min(1.0, after / before)
                found[f"{self.names[pid]} {pid}"] = ratio, after
        if not found:
            raise BenchmarkError("no process has lived from the second tenth of the run to the last")
        return found

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            at = time.time()
            for process in processes.family(self._roots):
                with suppress(psutil.Error, OSError):
                    self.samples[process.pid].append((at, private_bytes(process.pid)))
                    self.names[process.pid] = shown(processes.arguments(process))


def private_bytes(pid: int) -> int:
    """The memory of a process that no other process has, or could have. Raises `OSError` if it has ended."""
    process = Path("/proc", str(pid))
    shares = not _NO_SHARED_MEMORY.search(process.joinpath("status").read_bytes())
    # the sum of all mappings is much cheaper for the kernel to tell than each of them
    mappings = process.joinpath("smaps" if shares else "smaps_rollup").read_bytes()
    total, is_private = 0, False
    for sharing, kibibytes in _MAPPING_OR_PRIVATE.findall(mappings):
        if sharing:
            is_private = sharing == b"p"
        elif is_private:
            total += int(kibibytes) * 1024
    return total


def shown(arguments: Sequence[str]) -> str:
    """What a process is, from its command line: `flq superlink`, `flq.node.worker`, `postgres: checkpointer`."""
    if "-m" in arguments:
        module, *rest = arguments[arguments.index("-m") + 1 :]
        return " ".join([module, *rest[:1]]) if module == "flq" else module
    program, *words = " ".join(arguments).split() or ["ended"]
    name = Path(program).name
    return " ".join([name, *words[:3]]) if name.endswith(":") else name


def tenth(starts: Sequence[float], index: int) -> tuple[float, float]:
    """When a tenth of the rounds began and ended; `starts` are those of all rounds, and the end of the last one."""
    rounds = len(starts) - 1
    return starts[index * rounds // 10], starts[(index + 1) * rounds // 10]


def _of_tenth(took: Sequence[float], index: int) -> Sequence[float]:
    return took[index * len(took) // 10 : (index + 1) * len(took) // 10]


def _median_within(samples: Sequence[tuple[float, int]], span: tuple[float, float]) -> float | None:
    times = [at for at, _ in samples]
    inside = samples[bisect(times, span[0]) : bisect(times, span[1])]
    return statistics.median(size for _, size in inside) if inside else None
