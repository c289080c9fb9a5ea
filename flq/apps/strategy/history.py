"""The names that a round's metrics have in the run's history (`flq.metrics`, `flq.rounds`)."""

from __future__ import annotations

from collections.abc import Iterator

from flq.wire.records import MetricRecord


def history(
    *, server: MetricRecord | None = None, train: MetricRecord | None = None, evaluate: MetricRecord | None = None
) -> dict[str, float]:
    """The numbers of a round by name; lists are left out.

    What `evaluate_fn` measured keeps its names (`loss`, `accuracy`). What the nodes measured in training begins with
    `train_`, what they measured in evaluation with `eval_`; a name that begins like that already stays as it is. So
    a metric has the same name in every round, and none takes another's place: should two names still be the
    same, as with `loss` and `train_loss` in one record, the prefix is put before the second one in any case.
    """
    named: dict[str, float] = {}
    for prefix, record in (("", server), ("train_", train), ("eval_", evaluate)):
        for key, value in _scalars(record):
            name = key if key.startswith(prefix.rstrip("_")) else f"{prefix}{key}"
            while name in named:
                name = f"{prefix or 'server_'}{name}"
            named[name] = value
    return named


def _scalars(record: MetricRecord | None) -> Iterator[tuple[str, float]]:
    for key, value in (record or {}).items():
        if not isinstance(value, list):
            yield key, float(value)
