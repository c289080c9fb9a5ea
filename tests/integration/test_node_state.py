"""`context.state` through a SuperNode: which version a task starts from, what survives, and what goes."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from flq.node import state, trimmer
from flq.wire.fleet import Reply
from flq.wire.ids import RunId, TaskId
from flq.wire.message import ErrorCode
from flq.wire.status import Verdict
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import COUNT, node_options, write_app
from tests.waiting import eventually

DAY = 24 * 3600


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", COUNT)


@pytest.fixture
def quick_trims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimmer, "TRIM_SECONDS", 0.05)


def versions(tmp_path: Path) -> list[str]:
    # Unlike glob, walk does not mind folders that vanish under it.
    return sorted(name for _, _, names in os.walk(tmp_path / "cache" / "state") for name in names)


def files(*tasks: TaskId) -> list[str]:
    return sorted(f"{task}.state" for task in tasks)


def train(fleet: FleetDouble, run: RunId, *, branch: int = 0) -> TaskId:
    (task,) = fleet.push(run, ["node"], branch=branch)
    fleet.content(task)
    return task


def found(fleet: FleetDouble, task: TaskId) -> Mapping[str, object]:
    return dict(fleet.content(task).config_records["c"])


def before(fleet: FleetDouble, task: TaskId) -> object:
    return found(fleet, task)["before"]


# --- what a task starts from


def test_state_is_kept_per_run_and_node(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2, slots=2)):
        runs = [fleet.add_run(project) for _ in range(2)]
        for expected in range(3):
            for run in runs:
                for task in fleet.push(run, ["node-1", "node-2"]):
                    assert before(fleet, task) == expected
        (task,) = fleet.push(runs[0], ["node-1"], kind="evaluate")
        assert found(fleet, task) == {"count": 3, "big": 3.0}


def test_the_store_is_asked_once_for_each_node_of_a_run(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2)):
        run = fleet.add_run(project)
        for kind in ("evaluate", "train", "train", "query", "train"):
            for task in fleet.push(run, ["node-1", "node-2"], kind=kind):
                fleet.content(task)
    assert fleet.calls["state_bases"] <= 2


def test_state_survives_a_restart(tmp_path, project):
    fleet = FleetDouble()
    run = fleet.add_run(project)
    for expected in range(3):
        with supernode(fleet, node_options(tmp_path)):
            assert before(fleet, train(fleet, run)) == expected


def test_a_node_without_state_leaves_no_files(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        (task,) = fleet.push(fleet.add_run(project), ["node"], kind="evaluate")
        assert not found(fleet, task)
    assert versions(tmp_path) == []
    assert not fleet.versions


def test_state_can_be_cleared(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        for kind in ("train", "query"):
            (task,) = fleet.push(run, ["node"], kind=kind)
            fleet.content(task)
        assert before(fleet, train(fleet, run)) == 0


def test_a_branch_goes_back_to_the_state_that_it_begins_with(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        train(fleet, run)
        fleet.given_up.update(train(fleet, run) for _ in range(2))
        anew = [train(fleet, run, branch=1) for _ in range(2)]
        assert [before(fleet, task) for task in anew] == [1, 2]


def test_a_task_of_an_earlier_branch_counts_if_it_was_still_open(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        train(fleet, run)
        tasks = [fleet.push(run, ["node"], branch=branch)[0] for branch in (0, 1, 1)]
        assert [before(fleet, task) for task in tasks] == [1, 2, 3]


def test_a_fork_starts_from_its_parents_state(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        parent = fleet.add_run(project)
        last = train(fleet, parent)
        train(fleet, parent)
        child = fleet.add_run(project)
        fleet.forked[child] = parent, last
        assert [before(fleet, train(fleet, child)) for _ in range(2)] == [1, 2]
        assert before(fleet, train(fleet, parent)) == 2


def test_a_version_that_is_missing_is_no_empty_state(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        first, second = train(fleet, run), train(fleet, run)
        eventually(lambda: versions(tmp_path) == files(first, second), what="the promotion")
        (path,) = (tmp_path / "cache" / "state").glob(f"*/*/{second}.state")
        away = path.rename(tmp_path / "away")
        (task,) = fleet.push(run, ["node"])
        code, text = fleet.error(task)
        assert code == ErrorCode.STATE_UNAVAILABLE
        assert "STATE_UNAVAILABLE" in text
        assert path.name in text
        assert versions(tmp_path) == files(first)
        away.rename(path)
        assert before(fleet, train(fleet, run)) == 2


def test_a_damaged_version_is_no_empty_state(tmp_path, project):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        task = train(fleet, run)
        eventually(lambda: versions(tmp_path) == files(task), what="the promotion")
        next((tmp_path / "cache" / "state").glob("*/*/*")).write_bytes(b"garbage")
        (task,) = fleet.push(run, ["node"])
        code, text = fleet.error(task)
        assert code == ErrorCode.STATE_UNAVAILABLE
        assert "is no client state" in text


def test_files_of_another_store_are_not_started_from(tmp_path, project):
    fleet = FleetDouble()
    run = fleet.add_run(project)
    with supernode(fleet, node_options(tmp_path)):
        train(fleet, run)
    fleet.versions.clear()  # as after a restore of the database, or in a new one
    with supernode(fleet, node_options(tmp_path)):
        assert before(fleet, train(fleet, run)) == 0


def test_a_store_that_cannot_say_what_a_task_starts_from(tmp_path, project):
    class Broken(FleetDouble):
        def state_bases(self, keys):
            raise RuntimeError(f"no such table: {len(keys)}")

    fleet = Broken()
    with supernode(fleet, node_options(tmp_path)):
        (task,) = fleet.push(fleet.add_run(project), ["node"])
        code, text = fleet.error(task)
        assert code == ErrorCode.STATE_UNAVAILABLE
        assert "no such table" in text


def test_the_question_is_repeated_after_an_outage(tmp_path, project):
    fleet = FleetDouble(lose_answers={"state_bases"})
    with supernode(fleet, node_options(tmp_path)):
        (task,) = fleet.push(fleet.add_run(project), ["node"])
        eventually(lambda: fleet.calls["state_bases"] > 1, what="the question to be repeated")
        assert task not in fleet.results
        fleet.lose_answers.clear()
        assert before(fleet, task) == 0


# --- what becomes of a new version


def test_a_fenced_result_leaves_no_state(tmp_path, project):
    class Fencing(FleetDouble):
        def submit(self, replies):
            if self.calls["submit"] == 1:
                self.calls["submit"] += 1
                return {reply.key.task_id: Verdict.FENCED for reply in replies}
            return super().submit(replies)

    fleet = Fencing()
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project)
        first = train(fleet, run)
        (second,) = fleet.push(run, ["node"])
        eventually(lambda: fleet.calls["submit"] == 2 and not len(running.node._scheduler), what="the fenced result")
        fleet.lapse(second)
        assert found(fleet, second) == {"before": 1, "attempt": 2}
        eventually(lambda: versions(tmp_path) == files(first, second), what="the second version")


def test_the_next_task_waits_for_the_state_of_the_one_before(tmp_path, project):
    fleet = FleetDouble()
    gate = threading.Event()
    fleet.before_submit = lambda _replies: gate.wait(20)
    try:
        with supernode(fleet, node_options(tmp_path, slots=2)):
            run = fleet.add_run(project)
            tasks = [fleet.push(run, ["node"])[0] for _ in range(3)]
            eventually(lambda: versions(tmp_path), what="the first staged state")
            gate.set()
            assert [before(fleet, task) for task in tasks] == [0, 1, 2]
    finally:
        gate.set()


@pytest.mark.parametrize("accepted", [True, False])
def test_a_supernode_that_dies_before_the_verdict(tmp_path, project, accepted):
    """Its successor hands the reply in again, and so finds out what became of it."""
    fleet = FleetDouble()

    def die(replies: Sequence[Reply]) -> None:
        kept.extend(replies)
        if accepted:
            for reply in replies:
                fleet._submit(reply)
        fleet.fail(unreachable=True)

    kept: list[Reply] = []
    fleet.before_submit = die
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(project)
        (task,) = fleet.push(run, ["node"])
        eventually(lambda: kept, what="the submission")
        running.node.stop()
        running.node.stop()
    assert [name.partition(".")[2] for name in versions(tmp_path)] == ["reply", "staged"]

    fleet.before_submit = lambda _replies: None
    fleet.unreachable = fleet.connected = False
    with supernode(fleet, node_options(tmp_path)):
        assert fleet.result(task).key == kept[0].key
        assert before(fleet, train(fleet, run)) == 1


# --- what goes


def test_versions_that_nothing_starts_from_go(tmp_path, project, quick_trims):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        tasks = [train(fleet, run) for _ in range(state.KEPT_VERSIONS + 3)]
        fleet.unneeded.update(tasks[1:])  # a checkpoint still needs the first one
        eventually(lambda: versions(tmp_path) == files(tasks[0], *tasks[3:]), what="two versions to go")
        fleet.unneeded.update(tasks)
        eventually(lambda: versions(tmp_path) == files(*tasks[3:]), what="the one that was needed to go, too")
        assert before(fleet, train(fleet, run)) == len(tasks)


def test_what_an_earlier_process_left_goes_as_well(tmp_path, project, quick_trims):
    fleet = FleetDouble()
    run = fleet.add_run(project)
    with supernode(fleet, node_options(tmp_path)):
        tasks = [train(fleet, run) for _ in range(state.KEPT_VERSIONS + 1)]
    assert versions(tmp_path) == files(*tasks)
    fleet.unneeded.update(tasks)
    with supernode(fleet, node_options(tmp_path)):
        eventually(lambda: versions(tmp_path) == files(*tasks[1:]), what="the oldest version to go")


def test_many_new_versions_do_not_wait_for_the_next_minute(tmp_path, project, monkeypatch):
    monkeypatch.setattr(trimmer, "ENOUGH", 2)
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(project)
        tasks: list[TaskId] = []
        for _ in range(state.KEPT_VERSIONS + 3):
            tasks.append(train(fleet, run))
            fleet.unneeded.update(tasks)
        eventually(lambda: len(versions(tmp_path)) <= state.KEPT_VERSIONS + 1, what="old versions to go")


def test_state_that_has_not_changed_for_a_day_goes_if_nothing_needs_it(tmp_path, project, monkeypatch):
    fleet = FleetDouble()
    ended, going = fleet.add_run(project), fleet.add_run(project)
    with supernode(fleet, node_options(tmp_path)):
        gone, kept = train(fleet, ended), train(fleet, going)
    fleet.unneeded.add(gone)
    with supernode(fleet, node_options(tmp_path)):
        train(fleet, fleet.add_run(project))
    assert {*files(gone, kept)} <= {*versions(tmp_path)}, "it is kept for a while without asking"
    monkeypatch.setattr(state, "QUIET_SECONDS", 0.0)
    with supernode(fleet, node_options(tmp_path)):
        folder = tmp_path / "cache" / "state" / str(ended)
        eventually(lambda: not folder.exists(), what="the state of the ended run to go")
        assert before(fleet, train(fleet, going)) == 1


def test_state_of_nodes_that_are_no_longer_hosted_goes_after_the_end_of_its_run(tmp_path, project, monkeypatch):
    fleet = FleetDouble()
    run, going = fleet.add_run(project), fleet.add_run(project)
    with supernode(fleet, node_options(tmp_path, nodes=2)):
        for found in (run, going):
            for task in fleet.push(found, ["node-1", "node-2"]):
                fleet.content(task)
    fleet.stopped.add(run)
    monkeypatch.setattr(state, "QUIET_SECONDS", 0.0)
    folder = tmp_path / "cache" / "state"
    with supernode(fleet, node_options(tmp_path)):
        eventually(lambda: not (folder / str(run)).exists(), what="the state of the ended run to go")
        assert len(versions(tmp_path)) == 2
