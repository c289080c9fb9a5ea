"""The benchmark `broadcast`: how soon a thousand nodes have claimed their tasks of one push.

One SuperNode process hosts all of them, as `flq up --nodes 1000` starts it. The app is that of the benchmark `rounds`:
each round pushes two batches to all nodes. All times are the database's own: when the transaction of the push has
committed (`track_commit_timestamp`), and when each task was claimed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg

from benchmarks import flq_federation, processes
from benchmarks.failure import BenchmarkError
from benchmarks.flq_federation import FlqFederation
from benchmarks.harness import Benchmark, Cell, Goal, Measure, Metric, Values
from flq.local import federation as embedded

NODES = 1000
FLOATS = 2500
ROUNDS = 10
QUICK_ROUNDS = 3
SKIPPED = 2
"""So many pushes of a run are not counted: its first round starts processes."""

CELL = f"{NODES:,} nodes in one process"
METRICS = (
    Metric("last", "push committed → last task claimed", "s"),
    Metric("middle", "push committed → half of the tasks claimed", "s"),
    Metric("first", "push committed → first task claimed", "s"),
    Metric("push", "push begun → committed", "s"),
)
GOALS = (Goal(CELL, "last", at_most=0.1),)
CONFIG = "[embedded.postgres]\ntrack_commit_timestamp = true\n"

CLAIMS = """
    SELECT count(*), bool_and(r.attempt = 1),
           extract(epoch FROM max(r.claimed_at) - b.committed_at)::float8,
           extract(epoch FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY r.claimed_at) - b.committed_at)::float8,
           extract(epoch FROM min(r.claimed_at) - b.committed_at)::float8,
           extract(epoch FROM b.committed_at - b.created_at)::float8
    FROM (SELECT batch_id, run_id, created_at, pg_xact_commit_timestamp(xmin) AS committed_at FROM flq_state.batch) b
    JOIN flq_state.result r ON r.batch_id = b.batch_id
    WHERE b.run_id = (SELECT max(run_id) FROM flq_state.run)
    GROUP BY b.batch_id, b.created_at, b.committed_at
    ORDER BY b.batch_id
"""


def benchmark(*, quick: bool, peers: bool) -> Benchmark:  # noqa: ARG001 - as all benchmarks are made
    """The benchmark."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    return Benchmark(
        name="broadcast",
        title=f"A push to {NODES:,} nodes that one SuperNode process hosts",
        metrics=METRICS,
        goals=GOALS,
        cells=[Cell(CELL, {"flq": partial(_side, rounds)})],
        warmups=0 if quick else 1,
        settings={
            "pushes_of_a_repeat": rounds * 2 - SKIPPED,
            "message_bytes": FLOATS * 4,
            "postgres": "track_commit_timestamp is on, beside the settings of `flq up`",
        },
    )


@contextmanager
def _side(rounds: int) -> Iterator[Measure]:
    with flq_federation.federation() as federation:
        federation.home.mkdir()
        federation.home.joinpath("config.toml").write_text(CONFIG, encoding="utf-8")
        federation.up(NODES)
        processes.until_quiet(federation.roots(), "the federation")
        yield partial(_measure, federation, rounds)


def _measure(federation: FlqFederation, rounds: int) -> Values:
    federation.run(rounds=rounds, nodes=NODES, floats=FLOATS)
    addresses = embedded.addresses(federation.home)
    assert addresses is not None, "it is up"
    with psycopg.connect(addresses.dsn) as connection:
        found = connection.execute(CLAIMS).fetchall()
    return claims(found, pushes=rounds * 2)


def claims(rows: list[tuple[int, bool, float, float, float, float]], *, pushes: int) -> Values:
    """What the rows of `CLAIMS` come to. Raises `BenchmarkError` if not every push has reached every node at once."""
    reached = [(tasks, once) for tasks, once, *_ in rows]
    if reached != [(NODES, True)] * pushes:
        raise BenchmarkError(f"not {pushes} pushes to {NODES} nodes, each task claimed once, but {reached}")
    _, _, last, middle, first, push = zip(*rows[SKIPPED:], strict=True)
    return {"last": last, "middle": middle, "first": first, "push": push}
