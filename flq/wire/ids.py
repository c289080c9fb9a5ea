"""Ids that cross process borders."""

from __future__ import annotations

from typing import NewType

RunId = NewType("RunId", int)
BatchId = NewType("BatchId", int)
TaskId = NewType("TaskId", int)
NodeId = NewType("NodeId", int)
ObjectHash = NewType("ObjectHash", bytes)
"""The sha256 of an object's bytes, 32 bytes."""

SUPERLINK_NODE_ID = NodeId(1)
"""The source of every message to a SuperNode; SuperNodes are numbered from 2."""

FENCE_BITS = 62
"""Width of a fence token or an attempt token: random, positive, fits a bigint."""
