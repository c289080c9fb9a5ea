"""What every implementation of `flq.wire.control.Control` does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from flq.errors import ArtifactUnknown, QueryError, RunUnknown
from flq.wire.control import Control
from flq.wire.fleet import NodeSpec
from flq.wire.runs import FeedCursor, LogLine
from flq.wire.status import Outcome, RunStatus
from tests.conformance.conftest import House
from tests.integration import link_acts as act


def test_a_submitted_run_is_there_and_a_repeated_submission_finds_it(house: House):
    control = house.control()
    submission = act.submission("calm-otter", priority=3, select=("a",))
    row = control.submit(submission)
    assert control.submit(submission).run_id == row.run_id
    assert (row.name, row.status, row.select, dict(row.config)) == (
        "calm-otter", RunStatus.PENDING, ("a",), {"rounds": 3},
    )  # fmt: skip
    assert [found.run_id for found in house.control().runs()] == [row.run_id]
    assert control.run(str(row.run_id)) == control.run("calm-otter")
    assert control.resolve("calm-otter") == row.run_id


def test_runs_come_newest_first_and_at_most_as_many_as_asked_for(house: House):
    control = house.control()
    made = [control.submit(act.submission()).run_id for _ in range(3)]
    assert [row.run_id for row in control.runs(limit=2)] == made[:0:-1]


CALLS: dict[str, Callable[[Control], object]] = {
    "run": lambda control: control.run("nobody"),
    "finished": lambda control: control.finished("nobody"),
    "attempts": lambda control: control.attempts("nobody"),
    "rounds": lambda control: control.rounds("nobody"),
    "events": lambda control: control.events("nobody"),
    "waiting": lambda control: control.waiting("nobody"),
    "stop": lambda control: control.stop("nobody", actor="ada"),
    "logs": lambda control: control.logs("nobody", FeedCursor()),
    "artifacts": lambda control: control.artifacts("nobody"),
    "resolve": lambda control: control.resolve("nobody"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_run_that_does_not_exist_is_said_to(house: House, call: str):
    with pytest.raises(RunUnknown, match="nobody"):
        CALLS[call](house.control())


def test_a_pending_run_is_stopped_at_once_and_a_finished_one_stays_as_it_is(house: House):
    control = house.control()
    name = control.submit(act.submission()).name
    assert not control.finished(name)
    stopped = control.stop(name, actor="ada", reason="enough")
    assert control.finished(name)
    assert (stopped.status, stopped.outcome, stopped.reason) == (RunStatus.FINISHED, Outcome.STOPPED, "enough")
    assert control.stop(name, actor="bob", reason="again") == control.run(name)
    assert [(event.event, event.actor) for event in control.events(name)] == [("submitted", "ada"), ("stopped", "ada")]
    assert control.waiting(name) == []


def test_a_running_run_is_asked_to_stop(house: House):
    _, claim = house.grid()
    control = house.control()
    assert control.stop(claim.run.name, actor="ada").stop_requested
    assert "stop was requested" in control.waiting(claim.run.name)[0].reason
    (attempt,) = control.attempts(claim.run.name)
    assert attempt.attempt == 1


def test_what_happens_to_a_run_ends_a_wait(house: House):
    control = house.control()
    control.wait(0)  # from here on it listens
    waiter = threading.Thread(target=control.wait, args=(60,))
    waiter.start()
    house.control().submit(act.submission())
    waiter.join(20)
    assert not waiter.is_alive()


def test_lines_of_the_log_come_once_each(house: House):
    _, claim = house.grid()
    fleet = house.fleet()
    fleet.connect(act.process(), [NodeSpec(name="a")])
    control = house.control()
    cursor = FeedCursor()
    seen: list[str] = []
    for text in ("one", "two", "three"):
        line = LogLine(at=datetime.now(UTC), source="node a", level="info", text=text)
        fleet.append_logs([(claim.run.run_id, line)])
        page = control.logs(claim.run.name, cursor)
        cursor = page.cursor
        seen += [found.text for found in page.lines]
    assert seen == ["one", "two", "three"]


def test_an_artifact_that_does_not_exist_is_said_to(house: House):
    _, claim = house.grid()
    with pytest.raises(ArtifactUnknown):
        house.control().artifact(claim.run.name, "none.bin", memoryview(bytearray(1)))


def test_nodes_are_listed_with_who_hosts_them(house: House):
    fleet = house.fleet()
    fleet.connect(act.process(), [NodeSpec(name="b"), NodeSpec(name="a")])
    rows = house.control().nodes()
    assert [row.node_id for row in rows] == sorted(row.node_id for row in rows)
    assert {(row.name, row.online, row.host) for row in rows} == {("a", True, "testhost"), ("b", True, "testhost")}


def test_a_query_reads_the_views_and_nothing_else(house: House):
    control = house.control()
    control.submit(act.submission("calm-otter"))
    table = control.query("SELECT run, status FROM flq.runs WHERE run = $1", ["calm-otter"])
    assert (table.columns, table.rows) == (("run", "status"), (("calm-otter", "pending"),))
    for refused in ("SELECT * FROM flq_state.run", "DELETE FROM flq.runs", "SELEC 1"):
        with pytest.raises(QueryError):
            control.query(refused)
