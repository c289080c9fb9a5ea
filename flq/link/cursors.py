"""Where a SuperNode's claims go on: one cursor and one share for each run on each hosted node, in its memory.

Finished tasks leave dead entries in the index until vacuum may remove them, which one long transaction anywhere in the
cluster can hold up for hours. A claim that starts behind the last task it took never walks over them. A task below the
cursor may still become due: pushed by a transaction that commits late, given back, left by a lease that ran out. The
first two are told (`run batch lowest-task-id`) and lower the cursor; for all of them every node is looked at in full
from time to time.

The share is start-time fair queueing (Goyal, Vin, Cheng 1996): each task gets a start tag, tags of a run are 1/weight
apart, the lowest are dealt first. A run that was idle starts where the node's clock stands, so it saves up nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flq.link.arrays import bigints, doubles
from flq.wire.ids import NodeId, RunId, TaskId

FULL_LOOK_SECONDS = 5.0
"""A node is looked at in full at least this often while it claims."""

MOST_RUNS = 64
"""How many runs of a node have a cursor at most; the oldest are left to full looks."""


Dealt = tuple[NodeId, RunId, TaskId, float | None, float]
"""A task that a claim has brought, with its start tag, none for a repeated claim, and its run's weight."""


_NONE: Final = ((), (), (), ())


@dataclass(slots=True)
class _Stand:
    """How far a run has come on a node: the last task taken, and the next start tag."""

    after: int
    tag: float


@dataclass(slots=True)
class _Node:
    """What is known of one hosted node.

    Runs above `beyond` are found by looking into the index; by the next claim also those above `told`, which it has
    been told of although it has no stand in them.
    """

    clock: float = 0.0
    beyond: int = 0
    told: int | None = None
    full_at: float | None = None
    runs: dict[RunId, _Stand] = field(default_factory=dict)

    def look_from(self) -> int:
        """The run above which the next claim looks for others: lower than `beyond` once for what was told."""
        told, self.told = self.told, None
        return self.beyond if told is None else min(told, self.beyond)


@dataclass(frozen=True, slots=True)
class Look:
    """What one claim is told: columns of `wanted` and `known` of the statement `claim`.

    `again` says that the call may be the repetition of one whose answer was lost.
    """

    nodes: Collection[NodeId]
    full: frozenset[NodeId]
    again: bool
    clocks: Sequence[float]
    beyonds: Sequence[int]
    known_nodes: Sequence[int]
    known_runs: Sequence[int]
    known_after: Sequence[int]
    known_tags: Sequence[float]


class Cursors:
    """The cursors of one process. Claims come one after another; notices may come at any time, from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._nodes: dict[NodeId, _Node] = {}
        self._lowered: dict[RunId, int] = {}
        self._last_token: int | None = None

    def host(self, nodes: Iterable[NodeId]) -> None:
        """Begin anew with these nodes: nothing is known of them."""
        with self._lock:
            self._nodes = {node_id: _Node() for node_id in nodes}
            self._last_token = None

    def hear(self, payload: str) -> None:
        """Hear of tasks: `run batch lowest-task-id`, or anything else for `look everywhere`."""
        run, _, rest = payload.partition(" ")
        _, _, lowest = rest.partition(" ")
        if run.isdecimal() and lowest.isdecimal():
            self.lower(RunId(int(run)), TaskId(int(lowest)))
        else:
            self.look_everywhere()

    def lower(self, run_id: RunId, lowest: TaskId) -> None:
        """Tasks of a run from `lowest` on may have become due."""
        with self._lock:
            self._lowered[run_id] = min(lowest - 1, self._lowered.get(run_id, lowest))

    def look_everywhere(self) -> None:
        """The next claim for each node looks in full: something may have gone unheard."""
        with self._lock:
            for node in self._nodes.values():
                node.full_at = None

    def forget(self, runs: Collection[RunId]) -> None:
        """These runs have ended."""
        with self._lock:
            for node in self._nodes.values():
                for run_id in runs & node.runs.keys():
                    del node.runs[run_id]

    def look(self, nodes: Collection[NodeId], token: int) -> Look:
        """What the next claim has to look at."""
        clocks: list[float] = []
        beyonds: list[int] = []
        known: list[tuple[int, int, int, float]] = []
        full = set()
        with self._lock:
            self._apply_notices()
            again, self._last_token = self._last_token in {None, token}, token
            now = self._clock()
            for node_id in nodes:
                node = self._nodes[node_id]
                clock = node.clock
                in_full = again or node.full_at is None or now - node.full_at >= FULL_LOOK_SECONDS
                if in_full:
                    full.add(node_id)
                    node.full_at = now
                clocks.append(clock)
                beyonds.append(0 if in_full else node.look_from())
                for run_id, stand in node.runs.items():
                    tag = stand.tag
                    known.append((node_id, run_id, 0 if in_full else stand.after, max(clock, tag)))
        known_nodes, known_runs, known_after, known_tags = map(list, zip(*known, strict=True) if known else _NONE)
        return Look(
            nodes=nodes,
            full=frozenset(full),
            again=again,
            clocks=clocks,
            beyonds=beyonds,
            known_nodes=known_nodes,
            known_runs=known_runs,
            known_after=known_after,
            known_tags=known_tags,
        )

    def found(self, runs: Iterable[tuple[NodeId, RunId]]) -> None:
        """Remember runs that a claim has come upon; what it took of them is told to `brought`."""
        with self._lock:
            for node_id, run_id in runs:
                node = self._nodes[node_id]
                node.beyond = max(node.beyond, run_id)
                node.runs.setdefault(run_id, _Stand(0, node.clock))
                if len(node.runs) > MOST_RUNS:
                    del node.runs[min(node.runs)]

    def brought(self, dealt: Iterable[Dealt]) -> None:
        """Go on behind what a claim has brought."""
        with self._lock:
            for node_id, run_id, task_id, tag, weight in dealt:
                node = self._nodes[node_id]
                if tag is None:  # a repeated claim: what lies between was not looked at
                    node.full_at = None
                    continue
                node.clock = max(node.clock, tag)
                stand = node.runs.get(run_id)
                if stand is not None:  # else its run was forgotten meanwhile
                    stand.after = max(stand.after, task_id)
                    stand.tag = max(stand.tag, tag + 1 / weight)

    def failed(self, look: Look) -> None:
        """Nobody knows what became of a claim."""
        with self._lock:
            for node_id in look.nodes:
                self._nodes[node_id].full_at = None

    def _apply_notices(self) -> None:
        lowered, self._lowered = self._lowered, {}
        for run_id, after in lowered.items():
            for node in self._nodes.values():
                stand = node.runs.get(run_id)
                if stand is not None:
                    stand.after = min(stand.after, after)
                elif run_id <= node.beyond:
                    node.told = run_id - 1 if node.told is None else min(node.told, run_id - 1)


def columns(look: Look, epochs: Mapping[NodeId, int]) -> dict[str, object]:
    """A look as the arrays that the statement takes."""
    return {
        "node_ids": bigints(list(look.nodes)),
        "epochs": bigints([epochs[node_id] for node_id in look.nodes]),
        "clocks": doubles(look.clocks),
        "beyonds": bigints(look.beyonds),
        "known_nodes": bigints(look.known_nodes),
        "known_runs": bigints(look.known_runs),
        "known_after": bigints(look.known_after),
        "known_tags": doubles(look.known_tags),
    }
