"""What keeps a run from going on: every cause that `flq explain` and `flq.waiting` know."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flq.errors import BrokerUnreachable
from flq.link import attempts, processes, quotas, runs
from flq.link.control import DbControl
from flq.link.database import Database
from flq.link.dispatch import Dispatcher
from flq.wire.ids import RunId
from flq.wire.runs import Job
from flq.wire.status import Outcome, ProcessKind
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.waiting import eventually


@pytest.fixture
def control(dsn: str) -> Iterator[DbControl]:
    found = DbControl(dsn)
    yield found
    found.close()


def causes(control: DbControl, run_id: RunId) -> dict[str, str]:
    """The reasons by cause, what weighs most first."""
    return {found.cause: found.reason for found in control.waiting(str(run_id))}


def superlink(db: Database) -> None:
    processes.register(db, act.process(ProcessKind.SUPERLINK))


def submit(db: Database, **changes: Any) -> RunId:
    return runs.submit(db, act.submission(**changes))


def execute(db: Database, statement: str) -> None:
    with db.connection() as connection:
        connection.execute(statement)


def test_no_superexec_and_no_superlink(db: Database, control: DbControl):
    run_id = submit(db)
    assert causes(control, run_id) == {
        "no_superexec": "no SuperExec is alive",
        "no_superlink": "no SuperLink is alive to dispatch it",
    }
    processes.retire(db, act.superexec(db).process_id)
    assert causes(control, run_id)["no_superexec"].startswith("no SuperExec is alive; the last one went ")


def test_all_slots_are_taken_by_runs_that_are_named(db: Database, control: DbControl):
    superlink(db)
    act.superexec(db, slots=6)
    for number in range(6):
        submit(db, name=f"run-{number}")
    assert len(attempts.allocate(db)) == 6
    assert causes(control, submit(db)) == {
        "slots": "all 6 SuperExec slots are taken, by run-0, run-1, run-2, run-3, run-4 and 1 more"
    }


def test_a_run_that_nothing_holds_back_waits_for_the_dispatch(db: Database, control: DbControl):
    superlink(db)
    act.superexec(db)
    assert causes(control, submit(db)) == {"dispatch": "it waits for the next dispatch"}


def test_an_attempt_that_has_ended_early_and_when_the_next_one_begins(db: Database, control: DbControl):
    superlink(db)
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    attempts.release(db, run_id=run_id, token=claim.token, reason="ServerApp was killed by SIGKILL")
    claim = act.start_attempt(db, run_id)
    attempts.release(db, run_id=run_id, token=claim.token, reason="ServerApp was killed by SIGSEGV\nand more")
    execute(db, "UPDATE flq_state.run SET not_before = not_before + interval '1 hour'")
    found = causes(control, run_id)
    assert list(found) == ["back_off"]
    assert found["back_off"].startswith(
        "attempt 2 has ended early: ServerApp was killed by SIGSEGV; the next one begins in 360"
    )


def test_a_broker_that_takes_no_jobs(db: Database, control: DbControl):
    superlink(db)
    act.superexec(db)
    run_id = submit(db)

    def refuse(_: Job) -> None:
        raise BrokerUnreachable("the Celery broker cannot be reached: refused")

    for _ in range(3):
        Dispatcher(db, refuse).step()
    assert causes(control, run_id) == {"broker": "the Celery broker cannot be reached: refused"}
    assert [event.event for event in control.events(str(run_id))].count("delayed") == 1
    seen: list[str] = []
    dispatcher = Dispatcher(db, lambda _: seen.extend(causes(control, run_id)))
    assert dispatcher.step() == 1
    assert seen == ["broker"], "while it is being published it does not count as published"
    assert list(causes(control, run_id)) == ["job"]
    assert dispatcher.step() == 0


def test_a_job_that_no_superexec_takes(db: Database, control: DbControl):
    superlink(db)
    spec = act.superexec(db)
    run_id = submit(db)
    Dispatcher(db, lambda _: None).step()
    assert list(causes(control, run_id)) == ["job"]
    processes.retire(db, spec.process_id)
    assert list(causes(control, run_id)) == ["no_superexec"]


def test_a_serverapp_that_starts_and_a_superexec_that_does_not_renew_its_lease(db: Database, control: DbControl):
    superlink(db)
    run_id = act.start_attempt(db).run.run_id
    assert causes(control, run_id) == {"starting": "its ServerApp is starting on testhost"}
    execute(db, "UPDATE flq_state.run_attempt SET lease_until = clock_timestamp() - interval '5 s'")
    found = causes(control, run_id)
    assert list(found) == ["lease"]
    assert found["lease"].startswith("its SuperExec on testhost has not renewed its lease for ")


def test_a_stop_that_is_being_carried_out(doors: Doors, control: DbControl):
    _, claim = doors.grid()
    control.stop(claim.run.name, actor="ada")
    reason = causes(control, claim.run.run_id)["stop"]
    assert reason.startswith("a stop was requested ")
    assert reason.endswith("the SuperExec on testhost has not confirmed yet that its ServerApp has ended")


def test_tasks_at_nodes_that_are_offline_queued_or_at_work(doors: Doors, control: DbControl):
    gone, gone_nodes = doors.fleet("gone")
    there, hosted = doors.fleet("busy", "idle")
    grid, claim = doors.grid()
    run_id = claim.run.run_id
    grid.push(act.push(*(node.node_id for node in (*gone_nodes, *hosted)), ttl=600.0))
    gone.disconnect()
    assert len(act.claim(there, hosted[:1])) == 1
    found = causes(control, run_id)
    assert list(found) == ["offline", "queued", "working", "deadline"]
    assert found["offline"].startswith("1 of 3 open tasks are for nodes that are offline: gone (for ")
    assert found["queued"] == "1 of 3 open tasks wait for a free slot of their nodes: idle"
    assert found["working"].startswith("1 of 3 open tasks are being worked on, the longest for ")
    assert found["working"].endswith(" s: by busy")
    assert found["deadline"].startswith("what is open of them in ")


def test_no_node_or_fewer_than_the_run_was_started_for(doors: Doors, db: Database, control: DbControl):
    _, claim = doors.grid(submit(db, min_nodes=2))
    run_id = claim.run.run_id
    assert causes(control, run_id) == {"no_node": "no node that it may use is online; 0 are known"}
    doors.fleet("a")
    assert causes(control, run_id) == {"few_nodes": "1 nodes that it may use are online, and it was started for 2"}
    doors.fleet("b")
    assert list(causes(control, run_id)) == ["serverapp"]


def test_nodes_that_the_run_may_not_use_do_not_count(doors: Doors, db: Database, control: DbControl):
    doors.fleet("a", "b")
    _, claim = doors.grid(submit(db, select=("elsewhere",)))
    assert causes(control, claim.run.run_id) == {"no_node": "no node that it may use is online; 0 are known"}


def test_a_push_that_a_quota_keeps_waiting(doors: Doors, db: Database, control: DbControl):
    fleet, hosted = doors.fleet("a", "b")
    grid, claim = doors.grid()
    run_id = claim.run.run_id
    with db.transaction() as tx:
        quotas.limit(tx, run_id, max_open_tasks=2, max_bytes=None)
    grid.push(act.push(*(node.node_id for node in hosted)))
    waiting = threading.Thread(target=lambda: grid.push(act.push(hosted[0].node_id)))
    waiting.start()
    eventually(lambda: "quota" in causes(control, run_id), what="the quota among the causes")
    assert "limit of 2" in causes(control, run_id)["quota"]
    fleet.submit([act.reply(lease) for lease in act.claim(fleet, hosted)])
    waiting.join(20)
    assert not waiting.is_alive()
    assert "quota" not in causes(control, run_id)


def test_nothing_keeps_a_finished_run(db: Database, control: DbControl):
    claim = act.start_attempt(db)
    run_id = claim.run.run_id
    attempts.finish(db, run_id=run_id, token=claim.token, outcome=Outcome.COMPLETED, reason=None, exit_code=0)
    assert causes(control, run_id) == {}


def test_the_view_has_a_row_for_every_cause(db: Database, control: DbControl):
    submit(db, name="lonely")
    table = control.query("select run, status, cause, since is not null from waiting order by place")
    assert table.rows == (
        ("lonely", "pending", "no_superexec", True), ("lonely", "pending", "no_superlink", True),
    )  # fmt: skip
