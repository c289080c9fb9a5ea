"""Lineage: runs that come from another run, behind one of its rounds or from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg.types.json import Jsonb

from flq.errors import CheckpointUnknown, RunUnknown
from flq.link import events, notify, runs
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.ids import RunId
from flq.wire.runs import Derivation, RunInfo

SQL: Final = load("lineage")

SHOWN_ROUNDS = 10
"""So many of the rounds that are kept are named in an error."""


def derive(db: Database, parent: RunId, derivation: Derivation) -> RunId:
    """Record a run with app, seed and settings of `parent`; a repeated call finds the run that exists.

    The parent may be at work. Its row is held, so that it is not pruned meanwhile, then the row of the checkpoint, so
    that its state is not released. Raises `RunUnknown`, `CheckpointUnknown`, or `UsageError` if the name is taken or
    no name.
    """
    runs.check_name(derivation.name)
    with db.transaction() as tx:
        if tx.execute(SQL["hold_parent"], {"run_id": parent}).fetchone() is None:
            raise RunUnknown(f"there is no run {parent}")
        origin = runs.info_in(tx, parent)
        checkpoint_id = None if derivation.from_round is None else _checkpoint(tx, origin, derivation.from_round)
        run_id, fresh = _insert(tx, origin, derivation)
        if fresh:
            _inherit(tx, origin, derivation, run_id, checkpoint_id)
    return run_id


def _insert(tx: Tx, origin: RunInfo, derivation: Derivation) -> tuple[RunId, bool]:
    is_fork = derivation.from_round is not None
    key = {"owner": derivation.owner, "idempotency_key": derivation.idempotency_key}
    values = {
        **key,
        "parent": origin.run_id,
        "config": Jsonb(dict(origin.config if derivation.config is None else derivation.config)),
        "forked_from": origin.run_id if is_fork else None,
        "forked_from_round": derivation.from_round,
        "rerun_of": None if is_fork else origin.run_id,
    }

    def insert(name: str) -> tuple[Any, ...] | None:
        return tx.execute(SQL["derive_run"], {**values, "name": name}).fetchone()

    return runs.insert_named(tx, derivation.name, key, insert)


def _inherit(tx: Tx, origin: RunInfo, derivation: Derivation, run_id: RunId, checkpoint_id: int | None) -> None:
    came = f"a rerun of {origin.name}"
    if checkpoint_id is not None:
        values = {"run_id": run_id, "parent": origin.run_id, "checkpoint_id": checkpoint_id}
        tx.execute(SQL["inherit_checkpoint"], values)
        came = f"forked from {origin.name} behind round {derivation.from_round}"
    events.record(tx, run_id, "submitted", actor=derivation.owner, reason=came)
    notify.tell(tx, notify.RUNS, str(run_id))


def _checkpoint(tx: Tx, origin: RunInfo, wanted: int) -> int:
    row = tx.execute(SQL["kept_checkpoint"], {"run_id": origin.run_id, "round": wanted}).fetchone()
    if row is None:
        kept = [number for (number,) in tx.execute(SQL["kept_rounds"], {"run_id": origin.run_id}).fetchall()]
        raise _not_kept(origin.name, wanted, kept)
    checkpoint_id: int = row[0]
    return checkpoint_id


def _not_kept(run: str, wanted: int, kept: Sequence[int]) -> CheckpointUnknown:
    if not kept:
        return CheckpointUnknown(
            f"{run} keeps no checkpoint of any round: it has committed none, or was pruned",
            hint=f"flq rerun {run} runs it from scratch",
        )
    shown = ", ".join(map(str, kept[-SHOWN_ROUNDS:]))
    more = "" if len(kept) <= SHOWN_ROUNDS else f" and {len(kept) - SHOWN_ROUNDS} earlier ones"
    return CheckpointUnknown(
        f"{run} keeps no checkpoint of round {wanted}; it keeps those of rounds {shown}{more}",
        hint=f"flq fork {run} --from-round {kept[-1]}; a run keeps them all with flq run --keep-checkpoints all",
    )
