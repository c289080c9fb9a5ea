"""Committed rounds, and the lock under which a ServerApp writes."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from flq.errors import AttemptFenced, LinkError
from flq.link import metrics, notify, objects, quotas, runs, steps
from flq.link.database import Database, Tx
from flq.link.sql import load
from flq.wire.grid import Checkpoint
from flq.wire.ids import ObjectHash, RunId

SQL: Final = load("checkpoints")


class Held(NamedTuple):
    """The branch and the number of the attempt whose run is locked for a write."""

    branch: int
    attempt: int


def hold_attempt(tx: Tx, run_id: RunId, token: int) -> Held:
    """Lock the run FOR SHARE for a write of its present attempt. Raises `AttemptFenced`."""
    row = tx.execute(SQL["hold_attempt"], {"run_id": run_id, "token": token}).fetchone()
    if row is None:
        raise AttemptFenced
    return Held(*row)


def commit(db: Database, *, run_id: RunId, token: int, checkpoint: Checkpoint) -> None:
    """Record a finished round with its model, state and metrics in one transaction. Exactly one commit of it counts.

    What the next attempt leaves out has sent and received is released, unless the run keeps replies, and so are the
    states of all but its newest checkpoints. Where an earlier attempt has pushed at this point of the program, the run
    goes on in a branch of its own. Raises `AttemptFenced`, `ObjectsMissing` or `QuotaExceeded`.
    """
    with db.transaction() as tx:
        done = _commit(tx, run_id, checkpoint, hold_attempt(tx, run_id, token))
    if done:
        return
    with db.transaction() as tx:
        if runs.lock(tx, run_id).token != token:
            raise AttemptFenced
        now = f"checkpoint of round {checkpoint.round}"
        steps.diverge(tx, run_id, token, sequence=checkpoint.next_sequence - 1, before="push", now=now)
        _commit(tx, run_id, checkpoint, hold_attempt(tx, run_id, token))


def _commit(tx: Tx, run_id: RunId, checkpoint: Checkpoint, held: Held) -> bool:
    """Commit on the run's present branch, and release what is over. False if a push has the checkpoint's number."""
    objects.hold(tx, checkpoint.objects)
    steps.keep_lists(tx, run_id, checkpoint.delivered)
    values = {
        "run_id": run_id,
        "round": checkpoint.round,
        "branch": held.branch,
        "attempt": held.attempt,
        "next_sequence": checkpoint.next_sequence,
        "first_sequence": checkpoint.first_sequence,
        "state": checkpoint.state,
        "metrics": Jsonb(metrics.finite(checkpoint.metrics)),
        "objects": sorted(checkpoint.objects),
        "delivered": steps.column(checkpoint.delivered),
    }
    made, taken = tx.execute(SQL["commit_round"], values, prepare=True).fetchone() or (0, False)
    if made:
        metrics.record_in(tx, run_id, checkpoint.round, checkpoint.metrics)
        tx.execute(SQL["release_rounds"], _released(run_id, checkpoint))
        quotas.check(tx, run_id, objects=len(checkpoint.objects))
        notify.tell(tx, notify.RUNS, str(run_id))
    return not taken


def _released(run_id: RunId, checkpoint: Checkpoint) -> dict[str, Any]:
    first = checkpoint.first_sequence
    return {
        "run_id": run_id,
        "next_sequence": checkpoint.next_sequence,
        "first_sequence": checkpoint.next_sequence if first is None else first,
        "open_batches": sorted(checkpoint.open_batches),
        "open_from": checkpoint.open_from,
    }


def last(db: Database, run_id: RunId) -> Checkpoint | None:
    """The newest committed round of a run. Raises `LinkError` if its state was pruned: nothing can go on from it."""
    with db.connection() as connection, connection.cursor(binary=True) as cursor:
        row = cursor.execute(SQL["last_checkpoint"], {"run_id": run_id}).fetchone()
    if row is None:
        return None
    number, state, numbers, next_sequence, first_sequence, names = row
    if state is None:
        raise LinkError(f"the state of round {number} was pruned", hint="the run cannot go on; submit it anew")
    return Checkpoint(
        round=number,
        state=bytes(state),
        objects=frozenset(ObjectHash(bytes(name)) for name in names),
        metrics=metrics.numbers(numbers),
        next_sequence=next_sequence,
        first_sequence=first_sequence,
    )
