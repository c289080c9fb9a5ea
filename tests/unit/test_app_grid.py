from __future__ import annotations

import array
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flq.apps import Array, ArrayRecord, ConfigRecord, Error, Grid, Message, MetricRecord, RecordDict
from flq.apps.inbox import Inbox, Replies
from flq.apps.outbox import content_hash, parcels
from flq.errors import AppError, LinkError, ObjectCorrupt, ObjectsMissing, ObjectUnknown
from flq.wire.codec import encode
from flq.wire.ids import ObjectHash
from flq.wire.status import ResultStatus
from tests.grid_double import GridDouble


def echo(message: Message) -> RecordDict:
    node_id = message.metadata.dst_node_id
    arrays = ArrayRecord([np.full(20_000, node_id, np.float64)])
    return RecordDict({"arrays": arrays, "m": MetricRecord({"node": node_id})})


def model(fill: float = 0.0) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord([np.full(20_000, fill)])})


def to(*node_ids: int, content: RecordDict | None = None, kind: str = "train", **changes: Any) -> list[Message]:
    shared = content or model()
    return [Message(shared, node_id, kind, **changes) for node_id in node_ids]


def node_of(reply: Message) -> int:
    return reply.metadata.src_node_id


class TestPush:
    def test_returns_ids_in_order_and_stamps_the_messages(self) -> None:
        grid = Grid(GridDouble(echo))
        messages = to(3, 2)
        ids = grid.push_messages(messages)
        assert [message.metadata.message_id for message in messages] == ids
        assert all(identity.isdecimal() for identity in ids)
        assert {message.metadata.run_id for message in messages} == {7}
        assert grid.push_messages([]) == []

    def test_messages_of_one_type_group_and_ttl_are_one_batch(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        messages = [
            *to(2, group_id="1"),
            *to(2, kind="evaluate", group_id="1"),
            *to(3, group_id="1"),
            *to(3, group_id="2"),
            *to(3, group_id="1", ttl=5),
        ]
        ids = grid.push_messages(iter(messages))
        batches = [(push.sequence, push.kind, push.group, push.ttl, push.node_ids) for push in door.pushes]
        assert batches == [
            (0, "train", "1", 43_200.0, (2, 3)),
            (1, "evaluate", "1", 43_200.0, (2,)),
            (2, "train", "2", 43_200.0, (3,)),
            (3, "train", "1", 5.0, (3,)),
        ]
        assert grid.sequence == 4
        by_id = {str(task.task_id): task for task in door.open}
        assert [by_id[identity].node_id for identity in ids] == [2, 2, 3, 3, 3]

    def test_two_messages_to_one_node_are_two_tasks(self) -> None:
        door = GridDouble(echo)
        ids = Grid(door).push_messages(to(2, 2, 3))
        assert len(set(ids)) == 3
        assert [push.node_ids for push in door.pushes] == [(2, 3), (2,)]

    def test_a_broadcast_is_encoded_and_stored_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def counted(content: RecordDict) -> Any:
            calls.append(content)
            return encode(content)

        monkeypatch.setattr("flq.apps.outbox.encode", counted)
        door = GridDouble(echo, node_ids=range(2, 1002))
        grid = Grid(door)
        content = model(1.0)
        grid.push_messages(to(*door.node_ids, content=content))
        assert (len(calls), len(door.pushes[0].manifests), door.calls["put"]) == (1, 1, 1)
        grid.push_messages(to(*door.node_ids, content=content, kind="evaluate"))
        assert door.calls["put"] == 1
        assert door.calls["missing"] == 2

    def test_equal_contents_share_a_manifest_and_others_have_their_own(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        grid.push_messages([*to(2, content=model(1.0)), *to(3, content=model(1.0))])
        grid.push_messages([*to(2, content=model(1.0)), *to(3, content=model(2.0))])
        assert [len(push.manifests) for push in door.pushes] == [1, 2]
        assert [len(push.objects) for push in door.pushes] == [1, 2]
        assert door.calls["put"] == 2

    def test_objects_that_vanish_before_the_write_are_uploaded_again(self) -> None:
        door = GridDouble(echo)
        content = model(3.0)
        (name,) = encode(content).objects
        door.forgotten.add(name)
        Grid(door).push_messages(to(2, content=content))
        assert name in door.stored
        assert door.calls["push"] == 2

    def test_a_store_that_loses_everything_is_given_up_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        door = GridDouble(echo)
        monkeypatch.setattr(door, "put", lambda _name, _data: None)
        with pytest.raises(ObjectsMissing):
            Grid(door).push_messages(to(2))
        assert door.calls["push"] == 3

    def test_a_received_array_is_passed_on_without_being_read(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        (reply,) = grid.send_and_receive(to(2))
        grid.push_messages(to(3, content=RecordDict({"arrays": reply.content["arrays"]})))
        assert door.calls["read"] == 0

    @pytest.mark.parametrize(
        ("content", "group", "expected"),
        [
            ({}, "4", 4),
            ({}, "", None),
            ({}, "warm-up", None),
            ({"server-round": 6}, "", 6),
            ({"server-round": 6}, "4", 4),
            ({"server-round": 6.0}, "", None),
            ({"server-round": -1}, "", None),
            ({}, "-1", None),
            ({}, "²", None),
            ({}, "1" * 30, None),
        ],
    )
    def test_the_round_is_that_of_the_group_or_the_config(
        self, content: dict[str, Any], group: str, expected: int | None
    ) -> None:
        door = GridDouble(echo)
        Grid(door).push_messages(to(2, content=RecordDict({"config": ConfigRecord(content)}), group_id=group))
        assert door.pushes[0].round == expected

    def test_the_content_hash_is_that_of_what_is_said_to_whom(self) -> None:
        def hashed(*messages: Message) -> bytes:
            (parcel,) = parcels(messages, sequence=0, first_round=0)
            return parcel.push.content_hash

        base = hashed(*to(2, 3))
        assert hashed(*to(2, 3, ttl=9.0)) == base  # nor do ids and times count
        assert len(base) == 32
        others = [
            hashed(*to(2)),
            hashed(*to(3, 2)),
            hashed(*to(2, 3, kind="evaluate")),
            hashed(*to(2, 3, group_id="1")),
            hashed(*to(2, 3, content=model(1.0))),
            hashed(*to(2, content=model(0.0)), *to(3, content=model(1.0))),
        ]
        assert len({base, *others}) == 7
        assert content_hash("a", "bc", [], []) != content_hash("ab", "c", [], [])

    def test_a_resumed_grid_counts_on(self) -> None:
        door = GridDouble(echo)
        Grid(door, sequence=5).push_messages(to(2))
        assert door.pushes[0].sequence == 5

    def test_what_cannot_be_sent_is_refused_before_anything_is(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        error = Message(Error(0, "no"), reply_to=to(2)[0])
        with pytest.raises(ValueError, match="error"):
            grid.push_messages([*to(2), error])
        with pytest.raises(TypeError, match="Messages"):
            grid.push_messages([model()])  # type: ignore[list-item]
        broken = to(2)
        broken[0].metadata.message_type = "system"
        with pytest.raises(ValueError, match="reserved"):
            grid.push_messages(broken)
        assert door.pushes == []

    @pytest.mark.parametrize("use", ["push_messages", "pull_messages", "send_and_receive"])
    def test_another_thread_is_told_why_it_may_not(self, use: str) -> None:
        grid = Grid(GridDouble(echo))
        caught: list[Exception] = []

        def elsewhere() -> None:
            try:
                getattr(grid, use)([])
            except AppError as exc:
                caught.append(exc)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert "another thread" in str(caught[0])


class TestPull:
    def test_hands_each_reply_out_once_in_the_order_asked_for(self) -> None:
        door = GridDouble(echo, newest_first=True)
        grid = Grid(door)
        ids = grid.push_messages(to(2, 3))
        assert grid.pull_messages(ids) == []
        door.do_one()
        (reply,) = grid.pull_messages(ids)
        assert (node_of(reply), reply.metadata.reply_to_message_id) == (3, ids[1])
        door.do_one()
        assert [node_of(reply) for reply in grid.pull_messages([ids[1], ids[0]])] == [2]
        assert grid.pull_messages(ids) == []

    def test_a_reply_knows_where_it_comes_from(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        (identity,) = grid.push_messages(to(2, group_id="3"))
        door.do_one()
        (reply,) = grid.pull_messages([identity])
        metadata = reply.metadata
        assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (7, 2, 1)
        assert (metadata.group_id, metadata.message_type) == ("3", "train")
        assert metadata.created_at == door.done[0].created_at
        assert 0 < metadata.ttl <= 43_200

    def test_arrays_are_read_when_they_are_touched(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        door.do_one()
        (reply,) = grid.pull_messages(ids)
        record = reply.content.array_records["arrays"]
        assert (record["0"].shape, door.calls["read"]) == ((20_000,), 0)
        assert record["0"].numpy()[0] == 2
        assert door.calls["read"] == 1

    @pytest.mark.parametrize(
        ("answer", "code", "reason"),
        [
            (Error(2, "division by zero"), 2, "division by zero"),
            (Error(2), 2, "failed"),
            (ResultStatus.EXPIRED, 3, "deadline"),
            (ResultStatus.CANCELLED, 3, "cancelled"),
        ],
    )
    def test_what_is_no_reply_is_an_error(self, answer: Error | ResultStatus, code: int, reason: str) -> None:
        door = GridDouble(lambda _message: answer)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        door.do_one()
        (reply,) = grid.pull_messages(ids)
        assert reply.error.code == code
        assert reason in str(reply.error.reason)
        assert node_of(reply) == 2

    def test_a_node_that_went_away_is_said_to_be_unavailable(self) -> None:
        door = GridDouble(lambda _message: ResultStatus.EXPIRED)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        door.do_one()
        object.__setattr__(door.done[0], "error_code", 5)
        assert grid.pull_messages(ids)[0].error.code == 5

    def test_a_reply_that_cannot_be_read_is_an_error(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        door.do_one()
        object.__setattr__(door.done[0], "manifest", b"\x80\x04pickle")
        (reply,) = grid.pull_messages(ids)
        assert reply.error.code == 4
        assert "no message of flq" in str(reply.error.reason)

    @pytest.mark.parametrize("identity", ["", "abc", "-1", None, 5])
    def test_refuses_what_is_no_id(self, identity: Any) -> None:
        with pytest.raises(ValueError, match="no id"):
            Grid(GridDouble(echo)).pull_messages([identity])

    def test_an_object_of_another_size_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("flq.apps.grid.LARGE_OBJECT_BYTES", 1)
        door = GridDouble(echo)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        door.do_one()
        record = grid.pull_messages(ids)[0].content.array_records["arrays"]
        door.stored = {name: data[:-1] for name, data in door.stored.items()}
        with pytest.raises(ObjectCorrupt):
            record["0"].numpy()
        door.stored = {}
        monkeypatch.undo()
        with pytest.raises(ObjectUnknown):
            record["0"].numpy()


class TestSendAndReceive:
    @pytest.mark.parametrize("newest_first", [False, True])
    def test_replies_come_in_the_order_of_tasks(self, *, newest_first: bool) -> None:
        door = GridDouble(echo, node_ids=range(2, 102), newest_first=newest_first)
        replies = Grid(door).send_and_receive(to(*door.node_ids))
        assert [node_of(reply) for reply in replies] == list(door.node_ids)
        assert len(replies) == 100

    def test_sends_at_once_even_if_nobody_asks_for_the_replies(self) -> None:
        door = GridDouble(echo)
        Grid(door).send_and_receive(to(2, 3))
        assert len(door.open) == 2

    def test_hands_out_what_has_come_in_before_the_rest_has(self) -> None:
        door = GridDouble(echo, node_ids=range(2, 12))
        replies = iter(Grid(door).send_and_receive(to(*door.node_ids)))
        assert node_of(next(replies)) == 2
        assert len(door.open) == 9

    def test_waits_and_never_polls(self) -> None:
        door = GridDouble(echo, node_ids=range(2, 12))
        list(Grid(door).send_and_receive(to(*door.node_ids)))
        assert door.calls["wait"] == 10
        assert door.calls["arrived"] <= 11

    def test_can_be_iterated_over_again_and_keeps_nothing(self) -> None:
        door = GridDouble(echo)
        replies = Grid(door).send_and_receive(to(2, 3))
        first, second = list(replies), list(replies)
        assert [node_of(reply) for reply in first] == [node_of(reply) for reply in second] == [2, 3]
        assert first[0] is not second[0]
        assert door.calls["push"] == 1

    def test_results_are_read_some_at_a_time(self) -> None:
        door = GridDouble(echo, node_ids=range(2, 102))
        replies = Grid(door).send_and_receive(to(*door.node_ids))
        while door.open:
            door.do_one()
        next(iter(replies))
        assert door.calls["results"] == 1
        list(replies)
        assert door.calls["results"] == 5

    def test_what_is_open_at_the_timeout_is_cancelled(self) -> None:
        door = GridDouble(echo, node_ids=(2, 3, 4))
        inbox = Inbox(door, door.fetch, clock=lambda: door.now)
        grid = Grid(door)
        grid._inbox = inbox
        replies = grid.send_and_receive(to(2, 3, 4), timeout=10)
        door.do_one()
        door.idle = True
        got = list(replies)
        assert [reply.has_content() for reply in got] == [True, False, False]
        assert [reply.error.code for reply in got[1:]] == [3, 3]
        assert [node_of(reply) for reply in got] == [2, 3, 4]
        assert door.calls["cancel"] == 1
        assert 10 <= door.now <= 11

    def test_a_result_that_comes_in_with_the_timeout_counts(self) -> None:
        door = GridDouble(echo, node_ids=(2,))
        grid = Grid(door)
        grid._inbox = Inbox(door, door.fetch, clock=lambda: door.now)
        replies = grid.send_and_receive(to(2), timeout=10)
        door.now = 100
        door.do_one()
        assert [reply.has_content() for reply in replies] == [True]
        assert door.calls["cancel"] == 0

    def test_does_not_wait_for_ever_for_what_was_cancelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        door = GridDouble(echo, node_ids=(2,), idle=True)
        monkeypatch.setattr(door, "cancel", lambda _batches: 0)
        grid = Grid(door)
        grid._inbox = Inbox(door, door.fetch, clock=lambda: door.now)
        with pytest.raises(LinkError, match="no results"):
            list(grid.send_and_receive(to(2), timeout=1))

    def test_another_attempt_gets_the_replies_that_exist(self) -> None:
        door = GridDouble(echo)
        before = [node_of(reply) for reply in Grid(door).send_and_receive(to(2, 3))]
        again = Grid(door)
        replies = again.send_and_receive(to(2, 3))
        assert [node_of(reply) for reply in replies] == before
        assert len(door.pushes) == 1
        # what comes in of the next batch is seen as well
        assert [node_of(reply) for reply in again.send_and_receive(to(3))] == [3]

    def test_a_replayed_batch_is_seen_however_far_the_cursor_is(self) -> None:
        door = GridDouble(echo)
        first = Grid(door)
        list(first.send_and_receive(to(2)))
        list(first.send_and_receive(to(3)))
        again = Grid(door)
        list(again.send_and_receive(to(2)))
        assert [node_of(reply) for reply in again.send_and_receive(to(3))] == [3]

    def test_replies_of_other_pushes_stay_where_they_are(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        ids = grid.push_messages(to(2))
        assert [node_of(reply) for reply in grid.send_and_receive(to(3))] == [3]
        assert [node_of(reply) for reply in grid.pull_messages(ids)] == [2]

    def test_no_messages_have_no_replies(self) -> None:
        replies = Grid(GridDouble(echo)).send_and_receive([])
        assert list(replies) == []
        assert isinstance(replies, Replies)


class TestArtifacts:
    def test_bytes_and_files_are_stored(self, tmp_path: Path) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        (tmp_path / "big").write_bytes(b"abc" * 1000)
        (tmp_path / "empty").touch()
        grid.save_artifact("a.bin", b"abc")
        grid.save_artifact("b.bin", bytearray(b"abd"))
        grid.save_artifact("c.bin", memoryview(array.array("h", [0, 1, 2])))
        grid.save_artifact("d.bin", tmp_path / "big")
        grid.save_artifact("e.bin", tmp_path / "empty")
        contents = {name: door.stored[digest] for name, digest in door.artifacts.items()}
        assert contents == {
            "a.bin": b"abc",
            "b.bin": b"abd",
            "c.bin": b"\0\0\1\0\2\0",
            "d.bin": b"abc" * 1000,
            "e.bin": b"",
        }

    def test_what_is_stored_is_not_uploaded_again(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        grid.save_artifact("a", b"abc")
        grid.save_artifact("b", b"abc")
        assert door.calls["put"] == 1
        assert door.artifacts == dict.fromkeys("ab", ObjectHash(hashlib.sha256(b"abc").digest()))

    @pytest.mark.parametrize(
        "name", ["", "/etc/passwd", "..", ".", "a/b", "a\\b", "a\nb", "a\0", "x" * 300, "\ud800", None]
    )
    def test_a_name_is_that_of_a_file(self, name: Any) -> None:
        with pytest.raises(ValueError, match="artifact"):
            Grid(GridDouble(echo)).save_artifact(name, b"")


class TestRounds:
    def test_a_committed_round_comes_back(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        assert grid.last_checkpoint() is None
        grid.push_messages(to(2))
        grid.commit_round(1, model(4.0), {"loss": 0.5})
        again = Grid(door)
        saved = again.last_checkpoint()
        assert saved is not None
        assert (saved.round, saved.next_sequence, saved.metrics) == (1, 2, {"loss": 0.5})
        assert saved.content == model(4.0)
        again.continue_at(saved.position)
        assert again.sequence == 2

    def test_a_committed_array_is_read_from_the_store_when_it_is_touched(self) -> None:
        door = GridDouble(echo)
        grid, content = Grid(door), model(4.0)
        array = content.array_records["arrays"]["0"]
        grid.commit_round(1, content, {})
        stored = grid.stored(array)
        assert not stored.loaded
        grid.commit_round(2, RecordDict({"arrays": ArrayRecord({"0": stored})}), {})
        assert door.calls["read"] == 0
        assert (stored.numpy() == 4.0).all()
        assert door.calls["read"] == 1
        assert stored == array

    def test_a_small_array_that_is_kept_apart_stays_an_object(self) -> None:
        door = GridDouble(echo)
        grid, page = Grid(door), Array.owning(np.arange(5), apart=True)
        for server_round, same in enumerate((page, grid.stored(page)), 1):
            grid.commit_round(server_round, RecordDict({"pages": ArrayRecord({"0": same})}), {})
            assert door.checkpoints[-1].objects == {page.digest}
        assert door.calls["read"] == 0
        assert grid.stored(page) == page

    def test_a_model_that_is_restored_is_pushed_as_the_same_bytes(self) -> None:
        # behind many others in its commit, the arrays of the model were objects there
        others = ArrayRecord([np.full(7_500, float(n)) for n in range(20)])
        content = RecordDict({"arrays": ArrayRecord([np.full(7_500, -1.0), np.full(7_500, -2.0)])})
        door = GridDouble(echo)
        grid = Grid(door)
        grid.commit_round(1, RecordDict({"others": others, **content}), {})
        saved = grid.last_checkpoint()
        assert saved is not None
        restored = RecordDict({"arrays": saved.content["arrays"]})
        (one,), (other,) = (parcels(to(2, content=sent), sequence=0, first_round=0) for sent in (content, restored))
        assert one.push.content_hash == other.push.content_hash

    def test_trainings_of_one_run_count_their_rounds_on(self) -> None:
        door = GridDouble(echo)
        grid = Grid(door)
        assert grid.begin_training(3).index == 0
        grid.record_metrics(3, {"loss": 0.5})
        assert grid.begin_training(2).index == 1
        grid.record_metrics(1, {"loss": 0.25})
        grid.push_messages(to(2, group_id="1"))
        grid.commit_round(1, model(), {})
        assert door.planned == [3, 5]
        assert door.metrics == {(3, "loss"): 0.5, (4, "loss"): 0.25}
        assert (door.pushes[0].round, door.pushes[0].group, door.checkpoints[0].round) == (4, "1", 4)


def test_knows_its_run_and_its_nodes() -> None:
    grid = Grid(GridDouble(echo))
    assert grid.run.name == "brave-otter"
    assert grid.get_node_ids() == [2, 3]
    assert [node.name for node in grid.get_nodes()] == ["node-2", "node-3"]


def test_create_message_is_deprecated() -> None:
    grid = Grid(GridDouble(echo))
    with pytest.warns(DeprecationWarning, match="create_message"):
        message = grid.create_message(model(), "train", 2, "5", ttl=3)
    assert (message.metadata.group_id, message.metadata.ttl) == ("5", 3)


def test_a_large_upload_is_no_copy() -> None:
    seen: list[bool] = []
    source = np.zeros(20_000)

    class Door(GridDouble):
        def put(self, object_hash: ObjectHash, data: memoryview) -> None:
            seen.append(np.shares_memory(np.frombuffer(data, np.uint8), source))
            super().put(object_hash, data)

    content = RecordDict({"a": ArrayRecord({"w": Array.owning(source)})})
    Grid(Door(echo)).push_messages(to(2, content=content))
    assert seen == [True]
