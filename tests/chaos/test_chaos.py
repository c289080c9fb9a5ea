"""The short form of `make chaos`: each kind of run, struck by some faults, ends as an undisturbed one does."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import cache

import pytest

from tests.chaos.checks import Reference
from tests.chaos.faults import Fault, faults
from tests.chaos.federation import Federation, federation
from tests.chaos.scenario import disturbed, undisturbed

FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in faults(own_disk=False)}


@pytest.fixture(scope="module")
def place() -> Iterator[Federation]:
    with federation() as found:
        yield found


@pytest.fixture(scope="module")
def references(place: Federation):
    """The undisturbed run of each kind, made when it is first asked for."""

    @cache
    def reference(loop: str) -> Reference:
        return undisturbed(place, loop)

    return reference


@pytest.mark.parametrize(
    ("loop", "struck"),
    [
        ("strategy", ("serverapp.after-push", "supernode.after-submit", "clientapp.state-staged")),
        ("hand", ("superlink.after-publish", "serverapp.before-commit", "postgres at any time")),
        ("query", ("superexec.main", "worker at any time", "job lost by FLUSHALL", "serverapp.before-report")),
    ],
)  # fmt: skip
def test_a_run_survives(place: Federation, references, loop: str, struck: tuple[str, ...]):
    chosen, rng = [FAULTS[name] for name in struck], random.Random(loop)  # noqa: S311 - of a test
    report = disturbed(place, loop, chosen, reference=references(loop), rng=rng)
    assert report.broken == []
    assert {occurrence.fault for occurrence in report.occurrences} >= set(struck[:1])
