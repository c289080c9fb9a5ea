"""The chaos suite's own pieces: which faults a run is dealt, and what a report says of what has happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from flq.failpoints import POINTS
from tests.chaos import observer, results
from tests.chaos.campaign import ATTEMPTS_PER_RUN, Deck
from tests.chaos.faults import Fault, faults
from tests.chaos.scenario import Occurrence, Report

SEED = 3


def a_fault(name: str, *, attempts: int = 0) -> Fault:
    return Fault(name=name, kind="ServerApp", way="kill", recovered=observer.PROGRESS, attempts=attempts)


def a_deck(*dealt: Fault) -> Deck:
    return Deck(dealt, random.Random(SEED))  # noqa: S311 - of a test


def test_every_fault_has_its_turn_before_any_a_second_time():
    deck = a_deck(*(a_fault(str(number)) for number in range(10)))
    first, second = deck.deal(5), deck.deal(5)
    assert sorted(int(fault.name) for fault in first + second) == list(range(10))


def test_a_run_is_dealt_no_more_than_it_can_bear_and_what_is_left_comes_next():
    deck = a_deck(*(a_fault(str(number), attempts=1) for number in range(2 * ATTEMPTS_PER_RUN)))
    dealt = [deck.deal(5), deck.deal(5)]
    assert [len(faults) for faults in dealt] == [ATTEMPTS_PER_RUN] * 2
    assert len({fault.name for faults in dealt for fault in faults}) == 2 * ATTEMPTS_PER_RUN


def test_the_same_seed_deals_the_same():
    names = [[fault.name for fault in a_deck(*faults(own_disk=True)).deal(5)] for _ in range(2)]
    assert names[0] == names[1]


def test_there_is_no_deck_without_faults():
    with pytest.raises(ValueError, match="no such fault"):
        a_deck()


def test_each_fail_point_is_among_the_faults_and_names_are_unique():
    names = [fault.name for fault in faults(own_disk=True)]
    assert set(POINTS) <= set(names)
    assert len(names) == len(set(names))


def reports() -> list[Report]:
    kill = ("ServerApp", "kill")
    first = Report("hand", 10.0, 2, [Occurrence("a", *kill, 1, 1.0), Occurrence("b", "Valkey", "other", 0, None)])
    second = Report(
        "query", 20.0, 3, [Occurrence("a", *kill, 2, 4.0), Occurrence("a", *kill, 1, 2.0)], ["b"], ["<lost>"]
    )
    return [first, second]


def test_a_report_counts_kills_and_times_by_kind_and_by_fault(tmp_path: Path):
    found = results.document(reports(), results.about(), {"seed": SEED})
    serverapp = {row["key"]: row["sides"]["flq"]["median"] for row in found["rows"] if row["cell"] == "ServerApp"}
    assert serverapp == {"kills": 4, "median": 2, "worst": 4}
    assert {row["key"]: row["reached"] for row in found["rows"] if row["goal"]} == {"median": True}
    assert found["faults"]["a"] == {
        "times": 3, "kills": 4, "missed": 0, "recovered": 3, "median": 2.0, "worst": 4.0,
    }  # fmt: skip
    assert (found["faults"]["b"]["times"], found["faults"]["b"]["missed"]) == (1, 1)
    assert found["settings"][results.BROKEN] == 1
    _, page = results.write(found, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "| a | 3 | 4 | 0 | 2 s | 4 s |" in text
    assert "- query: <lost>" in text
