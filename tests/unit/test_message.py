from __future__ import annotations

import math
import time
from typing import Any

import pytest

from flq.wire.message import (
    DEFAULT_TTL,
    Error,
    ErrorCode,
    Message,
    MessageType,
    Metadata,
    split_message_type,
)
from flq.wire.records import MetricRecord, RecordDict


def request(**changes: Any) -> Message:
    return Message(RecordDict(), **{"dst_node_id": 5, "message_type": "train", **changes})


@pytest.mark.parametrize(
    ("message_type", "parts"),
    [
        ("train", ("train", "default")),
        ("evaluate", ("evaluate", "default")),
        ("query.hist", ("query", "hist")),
        ("train._a1", ("train", "_a1")),
    ],
)
def test_a_message_type_is_a_category_with_an_action(message_type: str, parts: tuple[str, str]) -> None:
    assert split_message_type(message_type) == parts


@pytest.mark.parametrize(
    "message_type",
    ["", "system", "Train", "train.", "train.1", "train.a.b", "train.a-b", "query hist", "train\n", "fit", None, 5],
)
def test_anything_else_is_refused(message_type: str) -> None:
    with pytest.raises(ValueError, match="no message type"):
        split_message_type(message_type)
    with pytest.raises((ValueError, TypeError)):
        request(message_type=message_type)


def test_system_is_said_to_be_reserved() -> None:
    with pytest.raises(ValueError, match="reserved"):
        request(message_type=MessageType.SYSTEM)


def test_a_request_goes_from_the_superlink_to_a_node() -> None:
    before = time.time()
    metadata = request(group_id="3", ttl=60).metadata
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.message_type) == (1, 5, "train")
    assert (metadata.message_id, metadata.reply_to_message_id, metadata.group_id) == ("", "", "3")
    assert metadata.ttl == 60
    assert before <= metadata.created_at <= time.time()
    assert request().metadata.ttl == DEFAULT_TTL == 43_200


def test_a_reply_goes_back_and_lives_as_long_as_its_request() -> None:
    asked = request(ttl=100, group_id="3")
    asked.metadata.message_id, asked.metadata.run_id = "77", 9
    asked.metadata.created_at -= 40
    reply = Message(RecordDict({"m": MetricRecord({"x": 1})}), reply_to=asked)
    metadata = reply.metadata
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.reply_to_message_id) == (5, 1, "77")
    assert (metadata.run_id, metadata.group_id, metadata.message_type) == (9, "3", "train")
    assert 59 < metadata.ttl <= 60
    assert Message(RecordDict(), reply_to=asked, ttl=10).metadata.ttl == 10
    assert Message(RecordDict(), reply_to=asked, ttl=1000).metadata.ttl <= 60
    asked.metadata.created_at -= 100
    assert Message(RecordDict(), reply_to=asked).metadata.ttl == 0


def test_an_error_stands_in_the_place_of_content() -> None:
    error = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
    for reply in (Message(error, reply_to=request()), Message(error=error, reply_to=request())):
        assert reply.has_error()
        assert not reply.has_content()
        assert reply.error == Error(5, "gone")
        with pytest.raises(ValueError, match="gone"):
            _ = reply.content
        with pytest.raises(ValueError, match="cannot have content"):
            reply.content = RecordDict()
    with pytest.raises(ValueError, match="no error"):
        _ = request().error


def test_content_can_be_replaced() -> None:
    message = request()
    message.content = RecordDict({"m": MetricRecord()})
    assert list(message.content) == ["m"]
    with pytest.raises(TypeError):
        message.content = {}  # type: ignore[assignment]


def test_can_be_made_of_metadata() -> None:
    metadata = Metadata(1, "2", 3, 4, "", "", 0.0, 1.0, "train")
    assert Message(RecordDict(), metadata=metadata).metadata is metadata
    with pytest.raises(ValueError, match="no message type"):
        Message(RecordDict(), metadata=Metadata(1, "2", 3, 4, "", "", 0.0, 1.0, "system"))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"content": RecordDict()},
        {"content": RecordDict(), "dst_node_id": 2},
        {"content": RecordDict(), "message_type": "train"},
        {"error": Error(0), "dst_node_id": 2, "message_type": "train"},
        {"content": RecordDict(), "error": Error(0), "reply_to": request()},
        {"content": RecordDict(), "reply_to": request(), "dst_node_id": 3},
        {"content": RecordDict(), "reply_to": request(), "group_id": "1"},
        {"content": RecordDict(), "reply_to": request(), "metadata": request().metadata},
        {"content": RecordDict(), "metadata": request().metadata, "ttl": 1.0},
        {"content": {}, "dst_node_id": 2, "message_type": "train"},
        {"error": "boom", "reply_to": request()},
        {"content": RecordDict(), "dst_node_id": "2", "message_type": "train"},
        {"content": RecordDict(), "dst_node_id": 2, "message_type": "train", "ttl": "1"},
        {"content": RecordDict(), "dst_node_id": 2, "message_type": "train", "ttl": True},
    ],
)
def test_other_combinations_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Message(**arguments)


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf])
def test_a_ttl_is_positive(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        request(ttl=ttl)


def test_the_old_ways_to_reply_are_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="create_reply"):
        assert request().create_reply(RecordDict()).metadata.src_node_id == 5
    with pytest.warns(DeprecationWarning, match="create_error_reply"):
        assert request().create_error_reply(Error(1)).error.code == 1


def test_error_codes_are_those_of_the_api() -> None:
    assert [(code.name, code.value) for code in ErrorCode] == [
        ("UNKNOWN", 0),
        ("LOAD_CLIENT_APP_EXCEPTION", 1),
        ("CLIENT_APP_RAISED_EXCEPTION", 2),
        ("MESSAGE_UNAVAILABLE", 3),
        ("REPLY_MESSAGE_UNAVAILABLE", 4),
        ("NODE_UNAVAILABLE", 5),
        ("MOD_FAILED_PRECONDITION", 6),
        ("INVALID_FAB", 7),
        ("CLIENT_APP_CRASHED", 8),
        ("STATE_UNAVAILABLE", 100),
    ]


def test_says_what_it_is() -> None:
    assert "MetricRecord" in repr(Message(RecordDict({"m": MetricRecord()}), 2, "train"))
    assert "gone" in repr(Message(Error(0, "gone"), reply_to=request()))
