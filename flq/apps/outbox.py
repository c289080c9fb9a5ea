"""From messages to pushes: what belongs into one batch, and what is sent of it only once."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flq.wire.codec import Encoded, encode
from flq.wire.grid import Push
from flq.wire.ids import NodeId, ObjectHash
from flq.wire.message import Message

_LARGEST_ROUND = (1 << 31) - 1
_ROUND_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Parcel:
    """A push, the bytes of its objects, and the positions of its messages in what the app handed over."""

    push: Push
    objects: Mapping[ObjectHash, memoryview]
    positions: tuple[int, ...]


class _Union(Mapping[ObjectHash, memoryview]):
    """The objects of several contents."""

    def __init__(self, contents: Iterable[Encoded]) -> None:
        self._owners = {object_hash: content.objects for content in contents for object_hash in content.objects}

    def __getitem__(self, object_hash: ObjectHash) -> memoryview:
        return self._owners[object_hash][object_hash]

    def __iter__(self) -> Iterator[ObjectHash]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)


@dataclass(frozen=True, slots=True)
class _Key:
    """What the messages of a batch share; `copy` tells messages to the same node apart."""

    kind: str
    group: str
    ttl: float
    round: int | None
    copy: int


def parcels(messages: Sequence[Message], *, sequence: int, first_round: int) -> list[Parcel]:
    """Group `messages` into pushes that are numbered from `sequence`, in the order of each one's first message.

    `first_round` is added to the rounds that the messages say. A content that several messages share, or that is
    equal, is encoded and hashed once.
    """
    encoded = _encode_once(messages)
    groups: dict[_Key, list[int]] = {}
    copies: Counter[tuple[_Key, int]] = Counter()
    for position, message in enumerate(messages):
        key = _key(message, first_round)
        copy = copies[key, message.metadata.dst_node_id]
        copies[key, message.metadata.dst_node_id] += 1
        groups.setdefault(_Key(key.kind, key.group, key.ttl, key.round, copy), []).append(position)
    return [
        _parcel(key, positions, messages, encoded, sequence=sequence + index)
        for index, (key, positions) in enumerate(groups.items())
    ]


def _key(message: Message, first_round: int) -> _Key:
    metadata = message.metadata
    said = round_of(message)
    return _Key(
        kind=metadata.message_type,
        group=metadata.group_id,
        ttl=metadata.ttl,
        round=None if said is None else first_round + said,
        copy=0,
    )


def round_of(message: Message) -> int | None:
    """The round that a message belongs to: its group if that is a number, else `server-round` of a ConfigRecord."""
    group = message.metadata.group_id
    if group.isascii() and group.isdigit() and len(group) <= _ROUND_DIGITS:
        return int(group)
    for record in message.content.config_records.values():
        said = record.get("server-round")
        if type(said) is int and 0 <= said <= _LARGEST_ROUND:
            return said
    return None


def _encode_once(messages: Iterable[Message]) -> list[Encoded]:
    # The messages keep the contents alive, so that an id stays with its content here.
    done: dict[int, Encoded] = {}
    for message in messages:
        if id(message.content) not in done:
            done[id(message.content)] = encode(message.content)
    return [done[id(message.content)] for message in messages]


def _parcel(
    key: _Key, positions: Sequence[int], messages: Sequence[Message], encoded: Sequence[Encoded], *, sequence: int
) -> Parcel:
    node_ids = tuple(NodeId(messages[position].metadata.dst_node_id) for position in positions)
    contents = [encoded[position] for position in positions]
    manifests = tuple(content.manifest for content in contents)
    if all(manifest == manifests[0] for manifest in manifests):
        manifests = manifests[:1]
    objects = _Union(contents)
    push = Push(
        sequence=sequence,
        kind=key.kind,
        group=key.group,
        round=key.round,
        ttl=key.ttl,
        node_ids=node_ids,
        manifests=manifests,
        objects=frozenset(objects),
        content_hash=content_hash(key.kind, key.group, node_ids, manifests),
    )
    return Parcel(push, objects, tuple(positions))


def content_hash(kind: str, group: str, node_ids: Sequence[int], manifests: Sequence[bytes]) -> bytes:
    """The sha256 that identifies what is pushed; neither ids of messages nor times count."""
    parts = [
        b"flq push 1",
        kind.encode(),
        group.encode(),
        struct.pack(f"<{len(node_ids)}q", *node_ids),
        *(hashlib.sha256(manifest).digest() for manifest in manifests),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
