"""`context.state` of a SuperNode process on a real SuperLink, which is killed and whose disk loses things."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from flq.apps.bundle import pack
from flq.apps.project import load_project
from flq.link import attempts, lineage, runs
from flq.link.database import Database
from flq.local.process import python, python_environment
from flq.wire.codec import decode, encode
from flq.wire.grid import Checkpoint, Result
from flq.wire.ids import BatchId, NodeId, ObjectHash, RunId
from flq.wire.message import ErrorCode
from flq.wire.records import RecordDict
from flq.wire.runs import Derivation, FeedCursor
from flq.wire.status import ResultStatus
from tests.integration import link_acts as act
from tests.integration.link_acts import Doors
from tests.node_app import COUNT, write_app
from tests.waiting import eventually

HOLD = """
@app.query("hold")
def hold(msg, context):
    count = context.state["c"]["count"]
    folder = Path(context.run_config["folder"])
    (folder / f"attempt-{context.attempt}").write_text(str(count))
    while not (folder / "go").exists():
        time.sleep(0.005)
    context.state["c"]["count"] = count + 1
    return Message(RecordDict({"c": ConfigRecord({"before": count, "attempt": context.attempt})}), reply_to=msg)
"""

NODE = "ward"


class Federation:
    """A SuperNode process with one node, and the ServerApps of runs."""

    def __init__(self, doors: Doors, db: Database, dsn: str, folder: Path) -> None:
        self._doors = doors
        self._db = db
        self._environ = {"FLQ_DSN": dsn, "FLQ_HOME": str(folder / "home")}
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self.state = folder / "cache" / "state"
        self.data = pack(load_project(write_app(folder / "app", COUNT + HOLD))).data
        self.run_id = runs.submit(db, act.submission(bundle=self.data, config={"folder": str(folder)}))

    def serve(self, run_id: RunId) -> None:
        """The next attempt of a run; what follows is of this one."""
        self.run_id = run_id
        self.grid, self.claim = self._doors.grid(run_id)

    def again(self) -> None:
        attempts.release(self._db, run_id=self.run_id, token=self.claim.token, reason="its host went away")
        self.serve(self.run_id)

    def fork(self, parent: RunId, number: int) -> None:
        derivation = Derivation(owner="ada", idempotency_key=uuid.uuid4().hex, from_round=number)
        self.serve(lineage.derive(self._db, parent, derivation))

    def commit(self, number: int, next_sequence: int) -> None:
        self.grid.commit_round(
            Checkpoint(round=number, state=b"state", objects=frozenset(), metrics={}, next_sequence=next_sequence)
        )

    def start(self, failpoints: str | None = None) -> subprocess.Popen[bytes]:
        """Start the SuperNode."""
        command = python("-m", "flq", "supernode", "--name", NODE, "--slots", "1", "--drain", "0")
        with (self.folder / "supernode.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--cache", str(self.folder / "cache")],
                env=python_environment({**self._environ, "FLQ_FAILPOINTS": failpoints}),
                stdout=log,
                stderr=log,
            )
        return self._process

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the SuperNode a signal and wait for its end."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
            self._process.wait(20)

    def node_id(self) -> NodeId:
        eventually(lambda: any(node.name == NODE for node in self.grid.nodes()), what="the node to be online")
        return next(node.node_id for node in self.grid.nodes() if node.name == NODE)

    def push(self, sequence: int, *, kind: str = "train", group: str = "1") -> BatchId:
        manifest = encode(RecordDict()).manifest
        push = act.push(self.node_id(), sequence=sequence, kind=kind, group=group, manifests=(manifest,))
        return self.grid.push(push).batch_id

    def result(self, batch_id: BatchId) -> Result:
        """What became of a batch's only task."""
        found: list[Result] = []

        def arrived() -> bool:
            found[:] = self.grid.results(self.grid.arrived([batch_id], FeedCursor()).keys)
            return bool(found)

        eventually(arrived, timeout=40, what="the result")
        return found[0]

    def answer(self, batch_id: BatchId) -> Mapping[str, object]:
        """The answer of the app: how often the node had trained before, and in which attempt it says so."""
        result = self.result(batch_id)
        assert result.status is ResultStatus.OK, result.error_text
        return dict(decode(result.manifest, self._fetch).config_records["c"])

    def train(self, sequence: int, *, group: str = "1") -> object:
        """Train; returns how often the node had trained before."""
        return self.answer(self.push(sequence, group=group))["before"]

    def _fetch(self, object_hash: ObjectHash, size: int) -> memoryview:
        into = bytearray(size)
        self.grid.read(object_hash, memoryview(into))
        return memoryview(into)


@pytest.fixture
def federation(doors: Doors, db: Database, dsn: str, tmp_path: Path) -> Iterator[Federation]:
    federation = Federation(doors, db, dsn, tmp_path)
    federation.serve(federation.run_id)
    try:
        yield federation
    finally:
        federation.end(signal.SIGKILL)


def test_a_version_that_was_accepted_outlives_a_kill_before_its_promotion(federation: Federation):
    process = federation.start(failpoints="supernode.after-submit=kill@1")
    first = federation.push(0)
    assert process.wait(40) == -signal.SIGKILL
    kept = sorted(path.suffix for path in federation.state.glob("*/*/*"))
    assert kept == [".reply", ".staged"], "the kill came before the promotion"
    assert federation.answer(first) == {"before": 0, "attempt": 1}
    federation.start()
    assert federation.train(1) == 1


def test_a_version_whose_reply_was_never_handed_in_is_handed_in_by_the_next_process(federation: Federation):
    process = federation.start(failpoints="supernode.before-submit=kill@1")
    first = federation.push(0)
    assert process.wait(40) == -signal.SIGKILL
    federation.start()
    assert federation.answer(first)["before"] == 0
    assert federation.train(1) == 1


def test_the_next_attempt_at_a_task_starts_from_the_same_version(federation: Federation):
    federation.start()
    federation.train(0)
    held = federation.push(1, kind="query.hold")
    mark = federation.folder / "attempt-1"
    eventually(mark.exists, what="the first attempt")
    federation.end(signal.SIGKILL)
    (federation.folder / "go").touch()
    federation.start()
    assert federation.answer(held) == {"before": 1, "attempt": 2}
    assert federation.train(2) == 2


def test_a_missing_version_is_an_error_of_its_own(federation: Federation):
    federation.start()
    federation.train(0)
    federation.end()
    (version,) = federation.state.glob("*/*/*.state")
    away = version.rename(federation.folder / "away")
    federation.start()
    result = federation.result(federation.push(1))
    assert (result.status, result.error_code) == (ResultStatus.ERROR, ErrorCode.STATE_UNAVAILABLE)
    assert result.error_text is not None
    assert f"node {NODE} cannot read the client state that this task starts from" in result.error_text
    away.rename(version)
    assert federation.train(2) == 1


def test_a_run_that_goes_another_way_goes_back_to_the_state_of_that_point(federation: Federation):
    federation.start()
    assert [federation.train(sequence) for sequence in range(3)] == [0, 1, 2]
    federation.again()
    assert federation.train(0) == 0, "the same step: the answer that is there"
    assert [federation.train(sequence, group="another") for sequence in (1, 2)] == [1, 2]


def test_a_forked_run_starts_from_what_its_parents_nodes_had(federation: Federation):
    parent = federation.run_id
    federation.start()
    federation.train(0)
    federation.commit(1, 2)
    federation.train(2)
    federation.commit(2, 4)
    federation.end()
    federation.start()
    federation.fork(parent, 1)
    assert [federation.train(sequence) for sequence in (2, 3)] == [1, 2]
