"""A message between a ServerApp and a ClientApp, usable inside and outside of a run."""

from __future__ import annotations

import math
import re
import time
import warnings
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, overload

from flq.wire.ids import SUPERLINK_NODE_ID
from flq.wire.records import RecordDict

DEFAULT_TTL: Final = 43_200.0
"""How long a message may wait for its reply, in seconds, unless it says otherwise."""

_CATEGORIES = ("train", "evaluate", "query")
_TYPE = re.compile(rf"({'|'.join(_CATEGORIES)})(?:\.([A-Za-z_][A-Za-z0-9_]*))?")
DEFAULT_ACTION: Final = "default"


class MessageType:
    """What a message asks for; `query.hist` asks for the handler `hist` of the category `query`."""

    TRAIN: Final = "train"
    EVALUATE: Final = "evaluate"
    QUERY: Final = "query"
    SYSTEM: Final = "system"  # reserved for flq's own messages


class ErrorCode(IntEnum):
    """Why there is an error in the place of a reply. Those below 100 are Flower's."""

    UNKNOWN = 0
    LOAD_CLIENT_APP_EXCEPTION = 1
    CLIENT_APP_RAISED_EXCEPTION = 2
    MESSAGE_UNAVAILABLE = 3
    REPLY_MESSAGE_UNAVAILABLE = 4
    NODE_UNAVAILABLE = 5
    MOD_FAILED_PRECONDITION = 6
    INVALID_FAB = 7
    CLIENT_APP_CRASHED = 8
    STATE_UNAVAILABLE = 100
    """The client state that the task starts from is not on its node's disk, or cannot be read."""


@dataclass(frozen=True, slots=True)
class Error:
    """Stands in the place of a reply. `code` is an `ErrorCode`, `reason` is for people."""

    code: int
    reason: str | None = None


@dataclass(slots=True)
class Metadata:
    """What is known of a message besides its content.

    `created_at` is in seconds since the epoch, `ttl` in seconds. `message_id` is empty until the message is pushed;
    the `reply_to_message_id` of a reply is the id that the push returned.
    """

    run_id: int
    message_id: str
    src_node_id: int
    dst_node_id: int
    reply_to_message_id: str
    group_id: str
    created_at: float
    ttl: float
    message_type: str
    src_task_id: int | None = None
    dst_task_id: int | None = None
    delivered_at: str = ""


def split_message_type(message_type: str) -> tuple[str, str]:
    """Category and action of a message type: `("query", "hist")`, `("train", "default")`.

    Raises `ValueError` if it is none, or the reserved `system`.
    """
    found = _TYPE.fullmatch(message_type) if isinstance(message_type, str) else None
    if found is None:
        reserved = " (reserved)" if message_type == MessageType.SYSTEM else ""
        raise ValueError(
            f"{message_type!r}{reserved} is no message type: it is train, evaluate or query,"
            " or one of these with an action, as in 'query.hist'"
        )
    return found[1], found[2] or DEFAULT_ACTION


class Message:
    """A request to a node, or the reply to one: metadata with either content or an error.

    `Message(content, dst_node_id, message_type)` is a request, `Message(content, reply_to=request)` the reply,
    `Message(error, reply_to=request)` says why there is none. A reply's `ttl` is at most what is left of the
    request's. Raises `TypeError` for any other combination, `ValueError` for a wrong message type or ttl.

    >>> request = Message(RecordDict(), dst_node_id=2, message_type="query.hist")
    >>> reply = Message(RecordDict(), reply_to=request)
    >>> reply.metadata.src_node_id, reply.metadata.message_type
    (2, 'query.hist')
    """

    @overload
    def __init__(
        self,
        content: RecordDict,
        dst_node_id: int,
        message_type: str,
        *,
        ttl: float | None = None,
        group_id: str | None = None,
        dst_task_id: int | None = None,
    ) -> None: ...
    @overload
    def __init__(self, content: RecordDict | Error, *, reply_to: Message, ttl: float | None = None) -> None: ...
    @overload
    def __init__(self, *, error: Error, reply_to: Message, ttl: float | None = None) -> None: ...
    @overload
    def __init__(self, content: RecordDict | Error, *, metadata: Metadata) -> None: ...
    @overload
    def __init__(self, *, error: Error, metadata: Metadata) -> None: ...

    def __init__(
        self,
        content: RecordDict | Error | None = None,
        dst_node_id: int | None = None,
        message_type: str | None = None,
        *,
        error: Error | None = None,
        reply_to: Message | None = None,
        metadata: Metadata | None = None,
        ttl: float | None = None,
        group_id: str | None = None,
        dst_task_id: int | None = None,
    ) -> None:
        self._content, self._error = _payload(content, error)
        addressed = [x is not None for x in (dst_node_id, message_type, group_id, dst_task_id)]
        if (metadata is not None or reply_to is not None) and (any(addressed) or (metadata and (reply_to or ttl))):
            raise TypeError("a reply takes its addresses from `reply_to`; do not give others")
        if metadata is not None:
            split_message_type(metadata.message_type)
            self._metadata = metadata
        elif reply_to is not None:
            self._metadata = _reply_metadata(reply_to.metadata, _checked_ttl(ttl))
        else:
            if dst_node_id is None or message_type is None or self._content is None:
                raise TypeError(
                    "a Message needs content, dst_node_id and message_type; or content or error, and reply_to"
                )
            self._metadata = _request_metadata(
                dst_node_id, message_type, ttl=_checked_ttl(ttl), group_id=group_id, dst_task_id=dst_task_id
            )

    @property
    def metadata(self) -> Metadata:
        """Addresses, type and times."""
        return self._metadata

    @property
    def content(self) -> RecordDict:
        """The records. Raises `ValueError` if there is an error in their place."""
        if self._content is None:
            raise ValueError(f"the message has no content but an error: {self._error}")
        return self._content

    @content.setter
    def content(self, content: RecordDict) -> None:
        if self._error is not None:
            raise ValueError("a message with an error cannot have content")
        if not isinstance(content, RecordDict):
            raise TypeError(f"the content of a message is a RecordDict, not {type(content).__name__}")
        self._content = content

    @property
    def error(self) -> Error:
        """The error. Raises `ValueError` if there is none."""
        if self._error is None:
            raise ValueError("the message has no error")
        return self._error

    def has_content(self) -> bool:
        """Whether there are records."""
        return self._content is not None

    def has_error(self) -> bool:
        """Whether there is an error in the place of records."""
        return self._error is not None

    def create_reply(self, content: RecordDict, ttl: float | None = None) -> Message:
        """Deprecated: use `Message(content, reply_to=...)`."""
        _warn_deprecated("create_reply", "Message(content, reply_to=...)")
        return Message(content, reply_to=self, ttl=ttl)

    def create_error_reply(self, error: Error, ttl: float | None = None) -> Message:
        """Deprecated: use `Message(error, reply_to=...)`."""
        _warn_deprecated("create_error_reply", "Message(error, reply_to=...)")
        return Message(error, reply_to=self, ttl=ttl)

    def __repr__(self) -> str:
        payload = f"error={self._error!r}" if self._content is None else f"content={self._content!r}"
        return f"Message({payload}, metadata={self._metadata!r})"


def _payload(content: Any, error: Any) -> tuple[RecordDict | None, Error | None]:
    if isinstance(content, Error) and error is None:
        content, error = None, content
    if (content is None) == (error is None):
        raise TypeError("a Message has either content or an error")
    if content is not None and not isinstance(content, RecordDict):
        raise TypeError(f"the content of a message is a RecordDict, not {type(content).__name__}")
    if error is not None and not isinstance(error, Error):
        raise TypeError(f"the error of a message is an Error, not {type(error).__name__}")
    return content, error


def _checked_ttl(ttl: float | None) -> float | None:
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"ttl is a number of seconds, not {type(ttl).__name__}")
    if not math.isfinite(ttl) or ttl <= 0:
        raise ValueError(f"ttl is {ttl}; it must be positive")
    return float(ttl)


def _request_metadata(
    dst_node_id: int, message_type: str, *, ttl: float | None, group_id: str | None, dst_task_id: int | None
) -> Metadata:
    split_message_type(message_type)
    if isinstance(dst_node_id, bool) or not isinstance(dst_node_id, int):
        raise TypeError(f"dst_node_id is an int, not {type(dst_node_id).__name__}")
    return Metadata(
        run_id=0,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=dst_node_id,
        reply_to_message_id="",
        group_id=group_id or "",
        created_at=time.time(),
        ttl=DEFAULT_TTL if ttl is None else ttl,
        message_type=message_type,
        dst_task_id=dst_task_id,
    )


def _reply_metadata(request: Metadata, ttl: float | None) -> Metadata:
    now = time.time()
    left = max(0.0, request.created_at + request.ttl - now)
    return Metadata(
        run_id=request.run_id,
        message_id="",
        src_node_id=request.dst_node_id,
        dst_node_id=request.src_node_id,
        reply_to_message_id=request.message_id,
        group_id=request.group_id,
        created_at=now,
        ttl=left if ttl is None else min(ttl, left),
        message_type=request.message_type,
        src_task_id=request.dst_task_id,
        dst_task_id=request.src_task_id,
    )


def _warn_deprecated(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated, use {instead}", DeprecationWarning, stacklevel=3)
