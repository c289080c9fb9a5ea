"""The benchmark `simulation`: many nodes on one machine, beside the simulation engine of Flower (flwr).

Both frameworks run the app of the benchmark `rounds`: federated averaging of a 10 KB model, train and evaluate, by
clients that return what they got. A client step is one of these two, done by one node.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks import flq_federation, flwr_federation, processes
from benchmarks.federation import Federation, Outcome
from benchmarks.flwr_federation import FlwrSimulation
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Side, Values

FLOATS = 2500
"""The model, as float32: 10 KB."""

SIZES = (100, 1000)
ROUNDS = 10
QUICK_ROUNDS = 3
STEPS_OF_A_NODE = 2
"""In a round: train and evaluate."""

SKIPPED = 1
"""So many rounds at the start of a run are not counted in the rate: they start processes, and Ray."""

LARGEST = f"{max(SIZES):,} nodes"
METRICS = (
    Metric("rate", "client steps while rounds run", "steps/s", better="higher"),
    Metric("first", "typed → end of the first round", "s"),
    Metric("finished", "typed → finished, all rounds", "s"),
    Metric("cold", "the same in an empty home, where the command starts the federation", "s"),
)
GOALS = (
    Goal(LARGEST, "rate", ratio=10),
    Goal(LARGEST, "cold", at_most=60),
)


def benchmark(*, quick: bool, peers: bool) -> Benchmark:
    """The benchmark."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    return Benchmark(
        name="simulation",
        title="Many nodes on one machine: 10 KB model, train and evaluate",
        metrics=METRICS,
        goals=GOALS,
        cells=[_cell(nodes, rounds, peers=peers) for nodes in SIZES],
        settings={
            "model_bytes": FLOATS * 4,
            "rounds_of_a_run": rounds,
            "rounds_not_counted_in_the_rate": SKIPPED,
            "flq": "flq run --nodes N in an empty home, and again; state in PostgreSQL on disk, durable",
            "flwr": "flwr run on a SuperLink that is up and simulates with Ray, one core a client; state in memory",
        },
    )


def _cell(nodes: int, rounds: int, *, peers: bool) -> Cell:
    sides: dict[str, Side] = {"flq": partial(_flq, nodes, rounds)}
    if peers:
        sides["flwr"] = partial(_flwr, nodes, rounds)
    return Cell(f"{nodes:,} nodes", sides)


@contextmanager
def _flq(nodes: int, rounds: int) -> Iterator[Measure]:
    yield partial(measure_flq, nodes, rounds)


def measure_flq(nodes: int, rounds: int) -> Values:
    """A run that starts the federation, and one on the federation that is up then."""
    with flq_federation.federation() as federation:
        run = partial(federation.run, rounds=rounds, nodes=nodes, floats=FLOATS, options=("--nodes", str(nodes)))
        cold = run()
        federation.insist_on_durability()
        processes.until_quiet(federation.roots(), "the federation")
        return {**figures(run(), nodes), "cold": [cold.typed_to_finished]}


@contextmanager
def _flwr(nodes: int, rounds: int) -> Iterator[Measure]:
    with flwr_federation.federation(FlwrSimulation) as federation:
        federation.up(nodes)
        yield partial(measure_flwr, federation, nodes, rounds)


def measure_flwr(federation: Federation, nodes: int, rounds: int) -> Values:
    """A run on a SuperLink that is up."""
    processes.until_quiet(federation.roots(), "the SuperLink of Flower (flwr)")  # Ray takes a while to end
    return figures(federation.run(rounds=rounds, nodes=nodes, floats=FLOATS), nodes)


def figures(outcome: Outcome, nodes: int) -> Values:
    """What a run of more than `SKIPPED` rounds comes to."""
    counted = outcome.rounds[SKIPPED:]
    return {
        "rate": [len(counted) * nodes * STEPS_OF_A_NODE / sum(counted)],
        "first": [float(outcome.report["starts"][1]) - outcome.typed],
        "finished": [outcome.typed_to_finished],
    }
