"""The loop, its lanes, and the threads beside it."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from flq.errors import DatabaseUnreachable, LinkError, Superseded
from flq.node import heartbeat
from flq.node.heartbeat import Heartbeat, Waiter
from flq.node.lane import Lane
from flq.node.outage import LONGEST_WAIT, Backoff, Outage
from flq.node.reactor import Reactor
from flq.node.shipper import BATCH_LINES, Shipper
from flq.wire.fleet import Wake
from flq.wire.ids import RunId
from flq.wire.runs import LogLine
from tests.fleet_double import FleetDouble
from tests.waiting import eventually


@pytest.fixture
def reactor():
    found = Reactor()
    yield found
    found.close()


def run(reactor: Reactor, until, seconds: float = 5.0) -> None:
    late = time.monotonic() + seconds
    reactor.after(seconds, lambda: None)
    reactor.run(each=lambda: None, until=lambda: until() or time.monotonic() > late)
    assert until()


def test_actions_of_other_threads(reactor):
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: [reactor.post(lambda: found.append(1)) for _ in range(1000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    run(reactor, lambda: len(found) == 4000)
    for thread in threads:
        thread.join()


def test_timers_in_order_and_cancelled(reactor):
    found: list[str] = []
    reactor.after(0.02, lambda: found.append("late"))
    reactor.after(0.01, lambda: found.append("early"))
    reactor.after(0.0, lambda: found.append("never")).cancel()
    run(reactor, lambda: len(found) == 2)
    assert found == ["early", "late"]


def test_cancelled_timers_are_forgotten_long_before_they_are_due(reactor):
    for _ in range(10_000):
        reactor.after(3600, lambda: None).cancel()
    assert len(reactor._timers) <= 1024


def test_descriptors(reactor):
    reader, writer = os.pipe()
    found: list[bytes] = []

    def ready(_events: int) -> None:
        found.append(os.read(reader, 10))
        reactor.unwatch(reader)
        reactor.unwatch(reader)

    reactor.watch(reader, selectors.EVENT_READ, ready)
    os.write(writer, b"x")
    run(reactor, lambda: bool(found))
    os.close(reader)
    os.close(writer)
    assert found == [b"x"]


def test_a_lane_brings_outcomes_to_the_loop(reactor):
    lane = Lane("test", reactor)
    where: list[tuple[str, object]] = []
    here = threading.get_ident()

    def fail() -> None:
        raise LinkError("no")

    lane.call(
        threading.get_ident,
        done=lambda there: where.append(("done", there != here and threading.get_ident() == here)),
        failed=lambda exc: where.append(("failed", exc)),
    )
    lane.call(fail, done=lambda _: None, failed=lambda exc: where.append(("failed", str(exc))))
    assert lane.busy
    run(reactor, lambda: not lane.busy)
    lane.close()
    assert where == [("done", True), ("failed", "no")]


def test_a_lane_with_two_threads(reactor):
    lane = Lane("test", reactor, threads=2)
    meet = threading.Barrier(2, timeout=5)
    done: list[int] = []
    for _ in range(2):
        lane.call(meet.wait, done=done.append, failed=lambda exc: pytest.fail(str(exc)))
    run(reactor, lambda: len(done) == 2)
    lane.close()


def test_an_outage_is_told_once(caplog):
    caplog.set_level("INFO")
    over: list[int] = []
    outage = Outage(lambda: over.append(1))
    for _ in range(3):
        outage.failed(DatabaseUnreachable(), what="claiming")
    assert outage.ongoing()
    for _ in range(3):
        outage.succeeded()
    assert over == [1]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    outage.failed(LinkError("a surprise"), what="claiming")
    assert not outage.ongoing()
    assert "claiming failed: a surprise" in caplog.text


def test_waits_grow_up_to_a_limit():
    backoff = Backoff()
    waits = [backoff.next() for _ in range(20)]
    assert waits[0] <= 0.1
    assert LONGEST_WAIT / 2 <= waits[-1] <= LONGEST_WAIT
    backoff.reset()
    assert backoff.next() <= 0.1


def line(number: int) -> LogLine:
    return LogLine(at=datetime.now(UTC), source="node", level="INFO", text=str(number))


def test_lines_travel_together():
    fleet = FleetDouble()
    shipped: Counter[int] = Counter()
    shipper = Shipper(fleet, Outage(), shipped.update)
    shipper.start()
    for number in range(3 * BATCH_LINES):
        shipper.put(number % 2, RunId(1), [line(number)])
    shipper.close(5)
    assert [found.text for _, found in fleet.lines] == [str(number) for number in range(3 * BATCH_LINES)]
    assert shipped == {0: 750, 1: 750}
    assert fleet.calls["append_logs"] <= 5


def test_lines_wait_for_the_superlink(caplog):
    fleet = FleetDouble(unreachable=True)
    shipper = Shipper(fleet, Outage(), lambda _: None)
    shipper.start()
    shipper.put(1, RunId(1), [line(1)])
    eventually(lambda: fleet.calls["append_logs"] > 1, what="a second try")
    fleet.fail(unreachable=False)
    eventually(lambda: fleet.lines, what="the line")
    fleet.fail(unreachable=True)
    shipper.put(1, RunId(1), [line(2)])
    shipper.close(0.05)
    assert "1 lines of output were lost" in caplog.text
    assert "flq-logs" not in [thread.name for thread in threading.enumerate()]  # it has given up, and tries no more


@pytest.mark.parametrize("error", [LinkError("refused"), ValueError("a bug")])
def test_lines_that_are_refused_hold_up_no_others(error, caplog):
    class Refusing(FleetDouble):
        def append_logs(self, lines: Sequence[tuple[RunId, LogLine]]) -> None:
            if any(found.text == "1" for _, found in lines):
                raise error
            super().append_logs(lines)

    fleet = Refusing()
    shipper = Shipper(fleet, Outage(), lambda _: None)
    shipper.start()
    shipper.put(1, RunId(1), [line(1)])
    eventually(lambda: not shipper._lines, what="the refusal")
    shipper.put(1, RunId(1), [line(2)])
    shipper.close(5)
    assert [found.text for _, found in fleet.lines] == ["2"]
    assert str(error) in caplog.text


def test_heartbeats_go_on_in_an_outage(monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    fleet = FleetDouble(unreachable=True)
    outage = Outage()
    beat = Heartbeat(fleet, outage, superseded=lambda: None, forgotten=lambda: None)
    beat.start()
    eventually(lambda: fleet.calls["heartbeat"] > 2, what="three beats")
    assert outage.ongoing()
    fleet.fail(unreachable=False)
    eventually(lambda: not outage.ongoing(), what="the end of the outage")
    beat.stop()


def test_a_heartbeat_that_is_superseded_says_so():
    class Lost(FleetDouble):
        def heartbeat(self) -> None:
            raise Superseded

    told = threading.Event()
    Heartbeat(Lost(), Outage(), superseded=told.set, forgotten=lambda: None).start()
    assert told.wait(5)


def test_a_heartbeat_of_a_process_that_is_not_known_says_so_and_goes_on(monkeypatch, caplog):
    class Forgetful(FleetDouble):
        def heartbeat(self) -> None:
            self.calls["heartbeat"] += 1
            raise LinkError("the SuperLink does not know this process any more")

    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    told: list[int] = []
    fleet = Forgetful()
    beat = Heartbeat(fleet, Outage(), superseded=lambda: None, forgotten=lambda: told.append(1))
    beat.start()
    eventually(lambda: len(told) > 2, what="three beats")
    beat.stop()
    assert not caplog.records


def test_after_a_failed_wait_everything_is_looked_at():
    class Flaky(FleetDouble):
        def wait(self, _seconds: float) -> Wake:
            self.calls["wait"] += 1
            if self.calls["wait"] == 1:
                raise DatabaseUnreachable
            return Wake()

    wakes: list[Wake] = []
    waiter = Waiter(Flaky(), Outage(), wakes.append)
    waiter.start()
    eventually(lambda: len(wakes) > 1, what="two wake-ups")
    waiter.stop()
    assert wakes[:2] == [Wake(tasks=True, runs=True), Wake()]
