"""Steps: what a ServerApp has pushed and committed, with what was delivered to it in between.

A step is written with its push or its checkpoint. Replies stand in it as runs of task ids, `[first, count]`: those to a
push are numbered in a row, so a round of 10,000 replies is one pair of numbers if they came in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

from psycopg.types.json import Jsonb

from flq.errors import AttemptFenced, LinkError
from flq.link import events, tasks
from flq.link.arrays import byteas, texts
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.grid import Delivered, Delivery, DeliveryKind, GridNode, Step, StepKind
from flq.wire.ids import BatchId, NodeId, RunId, TaskId

SQL: Final = load("steps")


def recorded(db: Database, run_id: RunId) -> list[Step]:
    """The steps that the run's next attempt repeats, in order. See `Grid.steps`."""
    with db.connection() as connection:
        rows = connection.execute(SQL["recorded_steps"], {"run_id": run_id}).fetchall()
    return [
        Step(sequence, StepKind(kind), tuple(_delivery(said) for said in delivered))
        for sequence, kind, delivered in rows
    ]


def node_list(db: Database, run_id: RunId, list_hash: bytes) -> tuple[GridNode, ...]:
    """A list of nodes that was delivered to the run. Raises `LinkError` if there is none of this hash."""
    with db.connection() as connection:
        row = connection.execute(SQL["read_node_list"], {"run_id": run_id, "list_hash": list_hash}).fetchone()
    if row is None:
        raise LinkError(f"run {run_id} was given no list of nodes {list_hash.hex()[:12]}")
    return tuple(
        GridNode(node_id=NodeId(n), name=name, config=config, labels=labels) for n, name, config, labels in row[0]
    )


def keep_lists(tx: Tx, run_id: RunId, delivered: Delivered) -> None:
    """Keep the lists of nodes that a step is about to name for the first time."""
    if not delivered.node_lists:
        return
    lists = [
        json.dumps([(node.node_id, node.name, dict(node.config), dict(node.labels)) for node in nodes])
        for nodes in delivered.node_lists.values()
    ]
    tx.execute(
        SQL["insert_node_lists"],
        {"run_id": run_id, "hashes": byteas(list(delivered.node_lists)), "lists": texts(lists)},
    )


def column(delivered: Delivered) -> Jsonb:
    """What was delivered, as `step.delivered` holds it."""
    return Jsonb([_told(delivery) for delivery in delivered.deliveries])


def diverge(tx: Tx, run_id: RunId, token: int, *, sequence: int, before: str, now: str) -> None:
    """Open a branch for a step that is not what an earlier attempt has done at `sequence`, and say so with both hashes.

    The new branch takes over the steps before; the open tasks of those that stay behind are cancelled. The caller has
    locked the run. Raises `AttemptFenced`.
    """
    row = tx.execute(SQL["open_branch"], {"run_id": run_id, "token": token, "sequence": sequence}).fetchone()
    if row is None:
        raise AttemptFenced
    left = {"run_id": run_id, "branch": row[0] - 1}
    batches = [BatchId(batch_id) for (batch_id,) in tx.execute(SQL["batches_of_branch"], left).fetchall()]
    tasks.cancel_batches(tx, run_id, batches, reason="a later attempt went another way")
    details = {"sequence": sequence, "before": before, "now": now}
    events.record(tx, run_id, "diverged", actor="serverapp", details=details)


def _told(delivery: Delivery) -> dict[str, Any]:
    told: dict[str, Any] = {
        delivery.kind.value: delivery.node_list.hex()
        if delivery.kind is DeliveryKind.NODES
        else _runs(delivery.task_ids)
    }
    if delivery.timed_out:
        told["timed_out"] = _runs(delivery.timed_out)
    if delivery.times > 1:
        told["times"] = delivery.times
    return told


def _delivery(told: dict[str, Any]) -> Delivery:
    (kind,) = (kind for kind in DeliveryKind if kind.value in told)
    shown = kind is DeliveryKind.NODES
    return Delivery(
        kind=kind,
        node_list=bytes.fromhex(told[kind.value]) if shown else b"",
        task_ids=() if shown else _ids(told[kind.value]),
        timed_out=_ids(told.get("timed_out", ())),
        times=told.get("times", 1),
    )


def _runs(task_ids: Iterable[TaskId]) -> list[list[int]]:
    """Ids as runs of consecutive ones, `[first, count]`, in their order."""
    runs: list[list[int]] = []
    for task_id in task_ids:
        if runs and runs[-1][0] + runs[-1][1] == task_id:
            runs[-1][1] += 1
        else:
            runs.append([task_id, 1])
    return runs


def _ids(runs: Sequence[Sequence[int]]) -> tuple[TaskId, ...]:
    return tuple(TaskId(task_id) for first, count in runs for task_id in range(first, first + count))
