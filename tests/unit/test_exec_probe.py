from __future__ import annotations

import pytest

from flq.errors import BrokerUnreachable
from flq.exec.probe import PATIENCE, Probe
from flq.link.processes import Consumption
from tests.waiting import eventually


class Scene:
    """A probe, a broker and a consumer that do what they are told."""

    def __init__(self) -> None:
        self.sent = 0
        self.reachable = True
        self.consuming = True
        self.busy = False
        self.mends = True
        self.told: list[Consumption] = []
        self.restarts = 0
        self.given_up = False
        self.probe = Probe(
            self.send,
            is_busy=lambda: self.busy,
            tell=self.told.append,
            consume_anew=self.consume_anew,
            give_up=self.give_up,
            interval=1,
        )

    def send(self) -> None:
        if not self.reachable:
            raise BrokerUnreachable("away")
        self.sent += 1
        if self.consuming and not self.busy:
            self.probe.taken()

    def consume_anew(self) -> None:
        self.restarts += 1
        self.consuming = self.mends

    def give_up(self) -> None:
        self.given_up = True

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.probe.step()

    @property
    def missed(self) -> int:
        return self.told[-1].missed if self.told else 0


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_each_job_that_is_taken_is_told(scene: Scene):
    scene.steps(4)
    assert scene.sent == 4
    assert scene.told == [Consumption(taken=True, missed=0, restarts=0)] * 3


def test_consumes_anew_after_several_that_were_not_taken_and_no_sooner(scene: Scene):
    scene.consuming = False
    scene.steps(PATIENCE)
    assert (scene.restarts, scene.missed) == (0, PATIENCE - 1)
    scene.steps(1)
    assert scene.restarts == 1
    assert scene.told[-1] == Consumption(taken=False, missed=PATIENCE, restarts=1)
    scene.steps(5 * PATIENCE)
    assert (scene.restarts, scene.given_up) == (1, False)
    assert scene.told[-1] == Consumption(taken=True, missed=0, restarts=1)


def test_gives_up_when_that_does_not_help(scene: Scene):
    scene.consuming = scene.mends = False
    scene.steps(2 * PATIENCE)
    assert not scene.given_up
    scene.steps(1)
    assert (scene.given_up, scene.restarts, scene.missed) == (True, 1, 2 * PATIENCE)
    assert scene.sent == 2 * PATIENCE + 1


def test_it_can_happen_again(scene: Scene):
    for round_number in (1, 2):
        scene.consuming = False
        scene.steps(PATIENCE + 1)
        assert scene.restarts == round_number
        scene.steps(2)
        assert scene.missed == 0
    assert not scene.given_up


def test_nothing_is_sent_or_judged_while_all_slots_are_taken(scene: Scene):
    scene.steps(2)
    scene.busy = True
    scene.steps(1)
    sent = scene.sent
    scene.steps(5 * PATIENCE)
    assert (scene.sent, scene.restarts, scene.missed) == (sent, 0, 0)
    scene.busy = False
    scene.steps(5 * PATIENCE)
    assert (scene.restarts, scene.missed) == (0, 0)


def test_fewer_that_were_not_taken_are_forgotten(scene: Scene):
    for _ in range(PATIENCE):
        scene.consuming = False
        scene.steps(PATIENCE)
        assert scene.missed == PATIENCE - 1
        scene.consuming = True
        scene.probe.taken()  # one that was waiting
        scene.steps(1)
        assert scene.missed == 0
    assert scene.restarts == 0


def test_a_broker_that_takes_no_jobs_says_nothing_of_the_consumer(scene: Scene):
    scene.steps(2)
    scene.reachable = scene.consuming = False
    scene.steps(5 * PATIENCE)
    assert (scene.restarts, scene.missed) == (0, 0)
    scene.reachable = True
    scene.steps(PATIENCE)
    assert scene.restarts == 0
    scene.steps(1)
    assert scene.restarts == 1


def test_what_was_missed_before_the_broker_went_does_not_count(scene: Scene):
    scene.consuming = False
    scene.steps(PATIENCE)
    assert scene.missed == PATIENCE - 1
    scene.reachable = False
    scene.steps(1)
    assert (scene.missed, scene.restarts) == (0, 0)
    scene.reachable = True
    scene.steps(PATIENCE)
    assert (scene.missed, scene.restarts) == (PATIENCE - 1, 0)


def test_works_by_itself_until_it_gives_up():
    scene = Scene()
    scene.consuming = scene.mends = False
    scene.probe = Probe(
        scene.send,
        is_busy=lambda: False,
        tell=scene.told.append,
        consume_anew=scene.consume_anew,
        give_up=scene.give_up,
        interval=0.001,
    )
    scene.probe.open()
    eventually(lambda: scene.given_up, what="the end")
    assert scene.sent == 2 * PATIENCE + 1
