"""The benchmark `rounds`: what a round costs in which nothing has to be done, and a run of one round.

Both frameworks run the same app: federated averaging of a 10 KB model, train and evaluate, by clients that return what
they got. Both federations are up all the time, and idle while the other one is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from benchmarks import flq_federation, flwr_federation, processes
from benchmarks.federation import Federation
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Side, Values

FLOATS = 2500
"""The model, as float32: 10 KB."""

SIZES = (2, 10)
SKIPPED = 1
"""So many rounds at the start of a run are not counted: they start processes."""

FLQ_ROUNDS = 50
FLWR_ROUNDS = 3
QUICK_FLQ_ROUNDS = 10
QUICK_FLWR_ROUNDS = 2

METRICS = (
    Metric("round", "one round", "s"),
    Metric("finished", "typed → finished, run of one round", "s"),
    Metric("main", "typed → app's main() entered", "s"),
)
GOALS = (
    Goal("2 nodes", "round", ratio=150),
    Goal("10 nodes", "round", ratio=150),
    Goal("2 nodes", "finished", ratio=8),
)


def benchmark(*, quick: bool, peers: bool) -> Benchmark:
    """The benchmark."""
    flq_rounds = QUICK_FLQ_ROUNDS if quick else FLQ_ROUNDS
    flwr_rounds = QUICK_FLWR_ROUNDS if quick else FLWR_ROUNDS
    return Benchmark(
        name="rounds",
        title="Trivial rounds: 10 KB model, train and evaluate, everything already up",
        metrics=METRICS,
        goals=GOALS,
        cells=[_cell(nodes, flq_rounds, flwr_rounds if peers else None) for nodes in SIZES],
        warmups=0 if quick else 1,
        settings={
            "model_bytes": FLOATS * 4,
            "rounds_of_a_run": {"flq": flq_rounds, "flwr": flwr_rounds},
            "rounds_not_counted": SKIPPED,
            "flq": "flq up; state in PostgreSQL on disk, durable; one SuperNode hosts all nodes",
            "flwr": "SuperLink and a SuperNode for each node, isolation subprocess; state in memory (its default)",
        },
    )


def _cell(nodes: int, flq_rounds: int, flwr_rounds: int | None) -> Cell:
    sides: dict[str, Side] = {"flq": partial(_side, flq_federation.federation, nodes, flq_rounds)}
    if flwr_rounds is not None:
        sides["flwr"] = partial(_side, flwr_federation.federation, nodes, flwr_rounds)
    return Cell(f"{nodes} nodes", sides)


@contextmanager
def _side(opened: Callable[[], AbstractContextManager[Federation]], nodes: int, rounds: int) -> Iterator[Measure]:
    with opened() as federation:
        federation.up(nodes)
        processes.until_quiet(federation.roots(), "the federation")
        yield partial(measure, federation, nodes, rounds)


def measure(federation: Federation, nodes: int, rounds: int) -> Values:
    """One run of one round, and one of some rounds."""
    single = federation.run(rounds=1, nodes=nodes, floats=FLOATS)
    several = federation.run(rounds=rounds, nodes=nodes, floats=FLOATS)
    return {
        "round": several.rounds[SKIPPED:],
        "finished": [single.typed_to_finished],
        "main": [single.typed_to_main, several.typed_to_main],
    }
