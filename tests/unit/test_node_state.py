"""The versions of client state on a node's disk, and which one each task starts from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from flq.errors import CodecError
from flq.node.bases import Bases
from flq.node.outage import Outage
from flq.node.reactor import Reactor
from flq.node.scheduler import Scheduler
from flq.node.state import KEPT_VERSIONS, QUIET_SECONDS, ClientStates, Version
from flq.node.state_file import StateFile, write_state
from flq.node.tasks import HeldTask, Stage
from flq.wire.codec import encode
from flq.wire.fleet import Lease, Reply, StateBase, StateVersion, TaskKey
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId, TaskId
from flq.wire.records import ArrayRecord, ConfigRecord, RecordDict
from flq.wire.status import ResultStatus
from tests.fleet_double import FleetDouble

OBJECT = ObjectHash(bytes(range(32)))


def held(task: int, *, run: int = 1, node: str = "node", token: int = 9, branch: int = 0) -> HeldTask:
    key = TaskKey(node_id=NodeId(2), run_id=RunId(run), task_id=TaskId(task), batch_id=BatchId(1), token=token)
    lease = Lease(key=key, attempt=1, branch=branch, kind="train", group="", created_at=0, deadline=1, manifest=b"")
    return HeldTask(lease, node)


# --- files


def some_state() -> RecordDict:
    return RecordDict(
        {
            "c": ConfigRecord({"a": b"1"}),
            "large": ArrayRecord([np.arange(20_000.0), np.ones(30_001)]),
            "small": ArrayRecord([np.arange(3.0)]),
        }
    )


def test_state_there_and_back(tmp_path):
    path = tmp_path / "deep" / "1-2.staged"
    write_state(path, encode(some_state()))
    with StateFile(path) as file:
        found = file.read()
        assert found == some_state()
        mapped = found.array_records["large"]["0"].numpy()
        mapped += 1  # private to whoever has read it
    with StateFile(path) as file:
        again = file.read()
        assert again.array_records["large"]["0"].numpy()[0] == 0
        touched_too_late = file.read().array_records["large"]["1"]
    with pytest.raises(CodecError, match="after its task has ended"):
        touched_too_late.numpy()


@pytest.mark.parametrize("size", [0, 5, 24, 60, 500, 5000, 200_000])
def test_truncated_state_is_refused(tmp_path, size):
    path = tmp_path / "1-2.staged"
    write_state(path, encode(some_state()))
    with path.open("rb+") as file:
        file.truncate(size)
    with pytest.raises(CodecError):
        StateFile(path)


# --- versions


def version(task: int, *, run: int = 1, node: str = "node") -> Version:
    return Version(RunId(run), node, TaskId(task))


def stage(states: ClientStates, task: HeldTask, text: str = "") -> Path:
    path = Path(states.staging(task))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def promote(states: ClientStates, *tasks: int) -> None:
    for task in tasks:
        states.promote(stage(states, held(task), str(task)))


def age(folder: Path) -> None:
    """Let nothing have changed there for longer than a day."""
    then = folder.stat().st_mtime - QUIET_SECONDS - 1
    os.utime(folder, (then, then))


def reply(task: HeldTask) -> Reply:
    return Reply(
        key=task.key,
        status=ResultStatus.OK,
        manifest=b"manifest",
        objects=frozenset({OBJECT}),
        metrics={"m.loss": float("inf")},
        state=True,
        started_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
    )


def test_a_promoted_version_lies_at_its_path(tmp_path):
    states = ClientStates(tmp_path)
    promote(states, 3, 7)
    for found in (states, ClientStates(tmp_path)):
        assert [found.path(version(task)).read_text() for task in (3, 7)] == ["3", "7"]
        assert not found.path(version(4)).exists()


def test_a_version_is_promoted_once(tmp_path):
    states = ClientStates(tmp_path)
    staged = stage(states, held(1), "first")
    states.promote(staged)
    states.promote(staged)
    assert states.path(version(1)).read_text() == "first"


def test_the_newest_versions_are_not_spare(tmp_path):
    states = ClientStates(tmp_path)
    promote(states, *range(1, KEPT_VERSIONS + 3))
    assert states.spare(10) == [version(1), version(2)]
    assert states.spare(10) == []
    promote(states, 9)
    assert states.spare(10) == [version(3)]


def test_versions_that_nobody_was_asked_about_come_first_and_those_that_are_needed_come_again(tmp_path):
    states = ClientStates(tmp_path)
    promote(states, *range(1, KEPT_VERSIONS + 4))
    states.keep(states.spare(2))
    assert states.unasked == 1
    assert states.spare(2) == [version(3), version(1)]
    assert states.spare(2) == [version(2)]


def test_a_removed_version_is_gone_and_so_is_the_folder_of_the_last_one(tmp_path):
    states = ClientStates(tmp_path)
    promote(states, 1, 2)
    states.remove([version(1)])
    assert [path.name for path in tmp_path.glob("*/*/*")] == ["2.state"]
    states.remove([version(2), version(2)])
    assert list(tmp_path.iterdir()) == []
    promote(states, 3)
    assert states.path(version(3)).exists()


def test_a_folder_in_which_something_is_staged_stays(tmp_path):
    states = ClientStates(tmp_path)
    promote(states, 1)
    staged = stage(states, held(2))
    states.remove([version(1)])
    assert staged.exists()


def test_a_survey_finds_what_earlier_processes_have_left(tmp_path):
    promote(ClientStates(tmp_path), *range(1, KEPT_VERSIONS + 2))
    states = ClientStates(tmp_path)
    states.survey({"another"})
    assert states.spare(10) == []
    states.survey({"node"})
    states.survey({"node"})
    assert states.spare(10) == [version(1)]


def test_all_versions_are_spare_if_nothing_has_changed_for_a_day(tmp_path):
    states = ClientStates(tmp_path)
    promote(states, 1, 2)
    age(tmp_path / "1" / "node")
    states.survey({"node"})
    assert states.spare(10) == [version(1), version(2)]


def test_an_ended_run_keeps_the_state_of_hosted_nodes_and_what_has_changed_within_a_day(tmp_path):
    states = ClientStates(tmp_path)
    for node in ("node", "old", "new"):
        states.promote(stage(states, held(1, node=node)))
    for folder in ("1/old", "1/node"):
        age(tmp_path / folder)
    states.purge(RunId(1), {"node"})
    assert {path.parent.name for path in tmp_path.glob("*/*/*")} == {"node", "old", "new"}, "the run has just changed"
    age(tmp_path / "1")
    states.purge(RunId(1), {"node"})
    assert {path.parent.name for path in tmp_path.glob("*/*/*")} == {"node", "new"}


def test_odd_names_stay_inside(tmp_path):
    for name in ("..", ".", "a/b", "é", "%2E"):
        states = ClientStates(tmp_path)
        staged = stage(states, held(1, node=name), name)
        assert staged.parent.parent == tmp_path / "1"
        assert ".." not in staged.parts
        states.promote(staged)
        assert ClientStates(tmp_path).path(version(1, node=name)).read_text() == name
        age(staged.parent)
        states.survey({name})
        assert states.spare(10) == [version(1, node=name)]


def test_unsettled_replies_are_found_by_the_next_process(tmp_path):
    states = ClientStates(tmp_path)
    noted, unnoted, settled = held(1), held(2), held(3)
    for task in (noted, unnoted, settled):
        stage(states, task)
    for task in (noted, settled):
        states.note_reply(Path(states.staging(task)), reply(task))
    states.promote(Path(states.staging(settled)))
    ((staged, kept),) = ClientStates(tmp_path).unsettled()
    assert (str(staged), kept.key, kept.manifest) == (states.staging(noted), noted.key, b"manifest")
    assert (kept.objects, kept.metrics, kept.state) == (frozenset({OBJECT}), {"m.loss": float("inf")}, True)
    assert not Path(states.staging(unnoted)).exists()


def test_a_damaged_reply_is_dropped(tmp_path):
    states = ClientStates(tmp_path)
    path = stage(states, held(1))
    path.with_suffix(".reply").write_bytes(b"flq1 but not really")
    assert ClientStates(tmp_path).unsettled() == []
    assert not path.exists()


# --- what tasks start from


class Desk:
    """Tasks of one node that start one after the other; the store is asked as fast as the loop turns."""

    def __init__(self) -> None:
        self.fleet = FleetDouble()
        self.reactor = Reactor()
        self.scheduler = Scheduler()
        self.failed: list[tuple[TaskId, int, str]] = []
        self.bases = Bases(
            self.fleet,
            self.reactor,
            Outage(),
            scheduler=self.scheduler,
            failed=lambda task, code, text: self.failed.append((task.task_id, code, text)),
        )

    def hold(self, *tasks: HeldTask) -> None:
        for task in tasks:
            self.scheduler.add(task)
        for task in tasks:
            self.scheduler.ready(task, 0.0)

    def next(self) -> HeldTask | None:
        return self.scheduler.next(warm=(), blank=True, now=0.0)

    def turn(self, until: Callable[[], object]) -> None:
        self.reactor.run(each=lambda: None, until=lambda: bool(until()))

    def start(self, task: HeldTask) -> TaskId | None:
        """Start the next task, which has to be this one; returns the task whose version it starts from."""
        assert self.next() is task
        base = self.bases.base(task)
        if base is None:
            assert self.next() is None, "it waits for the answer, and so do those behind it"
            self.turn(lambda: task.stage is Stage.READY)
            assert self.next() is task
            base = self.bases.base(task)
        assert base is not None
        return None if base.version is None else base.version.task_id

    def finish(self, task: HeldTask, *, state: bool = True) -> None:
        """Its reply is accepted."""
        self.scheduler.computed(task, 0.0, keeps_node=state)
        if state:
            key = task.key
            self.fleet.versions.append(StateVersion(run_id=key.run_id, node_id=key.node_id, task_id=key.task_id))
            self.bases.accepted(task)
        self.bases.forget(task)
        self.scheduler.remove(task, 0.0)

    @property
    def questions(self) -> int:
        return self.fleet.calls["state_bases"]


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.bases.close()
    desk.reactor.close()


def test_a_run_that_goes_its_way_costs_one_question(desk):
    first, second, third = held(1), held(2), held(3)
    desk.hold(first, second, third)
    assert desk.start(first) is None
    desk.finish(first)
    assert desk.start(second) == 1
    desk.finish(second, state=False)
    assert desk.start(third) == 1
    assert desk.questions == 1


def test_a_task_that_nothing_has_to_wait_for_is_asked_about_early(desk):
    first, second = held(1), held(2)
    for task in (second, first):
        desk.scheduler.add(task)
    desk.bases.foresee([first.task_id, second.task_id, TaskId(99)])
    desk.turn(lambda: desk.questions and desk.bases._known)
    desk.scheduler.ready(first, 0.0)
    assert desk.start(first) is None
    assert desk.questions == 1


def test_another_branch_is_asked_about_when_what_was_before_it_has_ended(desk):
    early, late = held(1), held(2, branch=1)
    desk.hold(early, late)
    desk.bases.foresee([early.task_id, late.task_id])
    assert desk.start(early) is None
    assert desk.next() is None
    desk.finish(early)
    assert desk.start(late) == 1
    assert desk.questions == 2


def test_what_a_given_up_branch_has_left_is_not_started_from(desk):
    for task in (held(1), held(2)):
        desk.hold(task)
        desk.start(task)
        desk.finish(task)
    desk.fleet.given_up.add(TaskId(2))
    anew = held(3, branch=1)
    desk.hold(anew)
    assert desk.start(anew) == 1


def test_a_task_that_is_opened_again_does_not_start_from_a_later_one(desk):
    for task in (held(1), held(3)):
        desk.hold(task)
        desk.start(task)
        desk.finish(task)
    again = held(2)
    desk.hold(again)
    assert desk.start(again) == 1
    desk.finish(again)
    after = held(4)
    desk.hold(after)
    assert desk.start(after) == 3


def test_each_run_has_its_own(desk):
    one, other = held(1), held(2, run=2)
    desk.hold(one)
    desk.start(one)
    desk.finish(one)
    desk.hold(other)
    assert desk.start(other) is None


def test_what_was_known_is_asked_again_when_the_run_comes_back(desk):
    first, second = held(1), held(2)
    desk.hold(first)
    desk.start(first)
    desk.finish(first)
    desk.bases.forget_run(RunId(1))
    desk.hold(second)
    assert desk.start(second) == 1
    assert desk.questions == 2


def test_a_store_without_an_answer_fails_the_task_that_waits_for_it(desk, monkeypatch):
    def refuse(self: FleetDouble, keys: Sequence[TaskKey]) -> dict[TaskId, StateBase]:
        raise RuntimeError(f"{len(keys)} too many")

    monkeypatch.setattr(FleetDouble, "state_bases", refuse)
    task = held(1)
    desk.hold(task)
    assert desk.next() is task
    assert desk.bases.base(task) is None
    desk.turn(lambda: desk.failed)
    ((task_id, code, text),) = desk.failed
    assert (task_id, code) == (1, 100)
    assert "1 too many" in text


def test_a_task_that_is_claimed_again_while_the_question_is_under_way_is_asked_about_as_well(desk):
    lost, again = held(1), held(1, token=10)
    desk.hold(lost)
    desk.bases.foresee([lost.task_id])
    desk.bases.forget(lost)
    desk.scheduler.remove(lost, 0.0)
    desk.hold(again)
    assert desk.start(again) is None


def test_a_question_is_repeated_until_the_store_can_be_reached(desk):
    desk.fleet.unreachable = True
    task = held(1)
    desk.hold(task)
    assert desk.next() is task
    assert desk.bases.base(task) is None
    desk.turn(lambda: desk.questions > 1)
    assert desk.next() is None
    desk.fleet.unreachable = False
    desk.turn(lambda: task.stage is Stage.READY)
    assert desk.start(task) is None


def test_a_task_that_is_lost_while_it_waits_is_not_started(desk):
    task = held(1)
    desk.hold(task)
    assert desk.next() is task
    assert desk.bases.base(task) is None
    desk.bases.forget(task)
    desk.scheduler.remove(task, 0.0)
    desk.turn(lambda: desk.bases._known)
    assert desk.next() is None
