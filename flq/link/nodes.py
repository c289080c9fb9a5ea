"""Nodes: who hosts them, and which of them a run may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg.types.json import Jsonb

from flq.link import processes
from flq.link.database import Database
from flq.link.sql import load
from flq.wire.fleet import HostedNode, NodeSpec
from flq.wire.grid import GridNode
from flq.wire.ids import NodeId, RunId
from flq.wire.runs import NodeRow, ProcessSpec

SQL: Final = load("nodes")


def connect(db: Database, process: ProcessSpec, nodes: Sequence[NodeSpec]) -> list[HostedNode]:
    """Introduce a process and take its nodes over, in the order of `nodes`. Idempotent per process instance."""
    with db.transaction() as tx:
        processes.register_in(tx, process)
        rows = tx.execute(
            SQL["connect_nodes"],
            {
                "process_id": process.process_id,
                "names": [node.name for node in nodes],
                "configs": [Jsonb(dict(node.config)) for node in nodes],
                "labels": [Jsonb(dict(node.labels)) for node in nodes],
            },
        ).fetchall()
    known = {name: HostedNode(node_id=NodeId(node_id), name=name, epoch=epoch) for node_id, name, epoch in rows}
    return [known[node.name] for node in nodes]


def usable(db: Database, run_id: RunId) -> list[GridNode]:
    """The nodes that are online and that a run may use, by id."""
    with db.connection() as connection:
        rows = connection.execute(SQL["grid_nodes"], {"run_id": run_id}).fetchall()
    return [
        GridNode(node_id=node_id, name=name, config=config, labels=labels) for node_id, name, config, labels in rows
    ]


def listing(db: Database) -> list[NodeRow]:
    """Every node that the federation knows, by id."""
    with db.connection() as connection:
        rows = connection.execute(SQL["list_nodes"]).fetchall()
    return [
        NodeRow(
            node_id=NodeId(node_id),
            name=name,
            online=online,
            config=config,
            labels=labels,
            epoch=epoch,
            host=host,
            pid=pid,
            version=version,
            tasks_open=tasks_open,
            tasks_leased=tasks_leased,
            last_seen_at=None if alive_until is None else alive_until - processes.ALIVE,
        )
        for (
            node_id, name, online, config, labels, epoch, host, pid, version, tasks_open, tasks_leased, alive_until,
        ) in rows
    ]  # fmt: skip
