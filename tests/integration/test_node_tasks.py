"""Tasks through a SuperNode with real workers: answers, errors, output, isolation."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from flq.wire.ids import ObjectHash
from flq.wire.records import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import node_options, write_app
from tests.waiting import eventually


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_task_is_answered(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)) as running:
        run = fleet.add_run(write_app(tmp_path / "app"))
        content = RecordDict(
            {
                "arrays": ArrayRecord([np.arange(6.0)]),
                "m": MetricRecord({"loss": 0.5, "n": 3}),
                "c": ConfigRecord({"a": 1}),
            }
        )
        (task,) = fleet.push(run, ["node"], content)
        assert fleet.content(task) == content
        reply = fleet.results[task]
        assert reply.metrics == {"m.loss": 0.5, "m.n": 3}
        assert reply.started_at <= reply.ended_at
        assert reply.key.batch_id
    assert running.exit_code == 0
    assert not fleet.connected


def test_what_an_app_is_told(tmp_path):
    code = """
    @app.query("who")
    def who(msg, context):
        meta = msg.metadata
        config = {**context.node_config, **context.run_config, "attempt": context.attempt}
        config |= {"group": meta.group_id, "type": meta.message_type, "id": meta.message_id, "ttl": round(meta.ttl)}
        assert meta.dst_node_id == context.node_id and meta.run_id == context.run_id
        return Message(RecordDict({"c": ConfigRecord(config)}), reply_to=msg)
    """
    fleet = FleetDouble()
    options = node_options(
        tmp_path, nodes=2, node_config={"room": "a"}, per_node_config={"node-2": {"room": "b", "partition-id": 7}}
    )
    with supernode(fleet, options):
        run = fleet.add_run(write_app(tmp_path / "app", code), config={"lr": 0.1, "model.size": 3})
        first, second = fleet.push(run, ["node-1", "node-2"], kind="query.who", group="5", ttl=100)
        told = fleet.content(first).config_records["c"]
        assert dict(told) == {
            "room": "a",
            "partition-id": 0,
            "num-partitions": 2,
            "lr": 0.1,
            "model.size": 3,
            "attempt": 1,
            "group": "5",
            "type": "query.who",
            "id": str(first),
            "ttl": 100,
        }
        assert fleet.content(second).config_records["c"]["room"] == "b"
        assert fleet.content(second).config_records["c"]["partition-id"] == 7


@pytest.mark.parametrize("isolation", ["run", "task"])
def test_isolation(tmp_path, isolation):
    code = """
    @app.train()
    def train(msg, context):
        return Message(RecordDict({"m": MetricRecord({"pid": os.getpid()})}), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, isolation=isolation)):
        run = fleet.add_run(write_app(tmp_path / "app", code))
        pids: list[int] = []
        for _ in range(3):
            (task,) = fleet.push(run, ["node"])
            pids.append(int(str(fleet.content(task).metric_records["m"]["pid"])))
        assert len(set(pids)) == (1 if isolation == "run" else 3)
        if isolation == "task":
            eventually(lambda: not any(exists(pid) for pid in pids), what="the workers of finished tasks to be gone")


def test_runs_do_not_share_workers(tmp_path):
    code = """
    COUNT = [0]
    @app.train()
    def train(msg, context):
        COUNT[0] += 1
        return Message(RecordDict({"m": MetricRecord({"count": COUNT[0]})}), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        project = write_app(tmp_path / "app", code)
        runs = [fleet.add_run(project) for _ in range(2)]
        counts = []
        for run in [*runs, *runs]:
            (task,) = fleet.push(run, ["node"])
            counts.append(fleet.content(task).metric_records["m"]["count"])
        assert counts == [1, 1, 2, 2]


def test_an_app_that_raises(tmp_path):
    code = """
    def helper():
        raise ValueError("no data in this ward")

    @app.train()
    def train(msg, context):
        helper()
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", code))
        (task,) = fleet.push(run, ["node"])
        found, text = fleet.error(task)
        assert found == 2
        assert "ValueError: no data in this ward" in text
        assert "in helper" in text
        assert "flq/node" not in text
        eventually(
            lambda: any(level == "ERROR" and "no data in this ward" in line for _, level, line in fleet.output(run)),
            what="the error in the run's log",
        )


@pytest.mark.parametrize(
    ("statement", "code", "text"),
    [
        ("sys.exit(3)", 2, "SystemExit: 3"),
        ("raise KeyboardInterrupt", 2, "KeyboardInterrupt"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 8, "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 8, "was killed by SIGKILL"),
        (
            "print('last words', file=sys.stderr); os._exit(9)",
            8,
            "exited with code 9; the last that it wrote:\nlast words",
        ),
        ("return None", 2, "returned NoneType"),
        ("return Message(ArrayRecord([np.array([object()])]), reply_to=msg)", 2, "object"),
        (
            "m = MetricRecord({'l': [1]}); m['l'].append('x'); return Message(RecordDict({'m': m}), reply_to=msg)",
            2,
            "reply",
        ),
        ("context.state = 5; return Message(RecordDict(), reply_to=msg)", 2, "context.state"),
        ("raise ValueError('x' * 100_000)", 2, "(cut)"),
        ("os.write(int(sys.argv[1]), b'rubbish' * 100); time.sleep(60)", 8, "makes no sense"),
    ],
)
def test_a_task_that_goes_wrong(tmp_path, statement, code, text):
    source = f"""
    @app.train()
    def train(msg, context):
        {statement}

    @app.evaluate()
    def evaluate(msg, context):
        return Message(RecordDict(), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", source))
        (task,) = fleet.push(run, ["node"])
        found, reason = fleet.error(task)
        assert (found, text in reason) == (code, True), reason
        assert len(reason) <= 16 << 10
        (after,) = fleet.push(run, ["node"], kind="evaluate")
        assert not fleet.content(after)


def test_an_app_without_a_handler(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app"))
        (task,) = fleet.push(run, ["node"], kind="evaluate")
        code, text = fleet.error(task)
        assert code == 2
        assert "no handler for evaluate" in text
        assert "@app.evaluate()" in text


def test_an_app_that_cannot_be_loaded(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", "import nowhere_to_be_found"))
        for _ in range(2):
            (task,) = fleet.push(run, ["node"])
            code, text = fleet.error(task)
            assert code == 1
            assert "nowhere_to_be_found" in text


def test_a_bundle_that_cannot_be_trusted(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        data = b"this is no zip file"
        run = fleet.add_bundle(data, ObjectHash(hashlib.sha256(data).digest()))
        (task,) = fleet.push(run, ["node"])
        code, text = fleet.error(task)
        assert code == 7
        assert "bundle" in text


def test_output_arrives_at_its_node_and_run(tmp_path):
    code = """
    @app.train()
    def train(msg, context):
        me = context.node_config["partition-id"]
        print(f"printed by {me}")
        print(f"complained by {me}", file=sys.stderr)
        logging.getLogger("ward").info("logged by %d", me)
        logging.error("failed\\nat %d", me)
        os.write(1, b"caf\\xc3\\xa9 \\xff \\x00|\\n")
        os.system("echo from a child")
        print("no newline", end="")
        return Message(RecordDict(), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=3)):
        run = fleet.add_run(write_app(tmp_path / "app", code))
        for task in fleet.push(run, ["node-1", "node-2", "node-3"]):
            fleet.result(task)
    for me in range(3):
        lines = {(level, text) for source, level, text in fleet.output(run) if source == f"node-{me + 1}"}
        assert lines == {
            ("INFO", f"printed by {me}"),
            ("WARNING", f"complained by {me}"),
            ("INFO", f"ward: logged by {me}"),
            ("ERROR", "failed"),
            ("ERROR", f"at {me}"),
            ("INFO", "café \ufffd \ufffd|"),
            ("INFO", "from a child"),
            ("INFO", "no newline"),
        }


def test_a_flood_of_output_is_all_there(tmp_path):
    code = """
    @app.train()
    def train(msg, context):
        for number in range(30_000):
            print(number)
        print("x" * 20_000)
        return Message(RecordDict(), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(write_app(tmp_path / "app", code))
        (task,) = fleet.push(run, ["node"])
        fleet.result(task)
    texts = [text for _, _, text in fleet.output(run)]
    assert texts[:30_000] == [str(number) for number in range(30_000)]
    assert [len(text) for text in texts[30_000:]] == [8192, 8192, 20_000 - 2 * 8192]


def test_a_flood_of_output_waits_for_the_superlink(tmp_path):
    code = """
    @app.train()
    def train(msg, context):
        Path(context.run_config["file"]).touch()
        while True:
            print("y" * 1000)
    @app.evaluate()
    def evaluate(msg, context):
        return Message(RecordDict(), reply_to=msg)
    """
    fleet = FleetDouble()
    started = tmp_path / "started"
    with supernode(fleet, node_options(tmp_path, slots=2, nodes=2)) as running:
        run = fleet.add_run(write_app(tmp_path / "app", code), config={"file": str(started)})
        other = fleet.add_run(tmp_path / "app")
        fleet.push(run, ["node-1"])
        eventually(lambda: fleet.lines, what="the flood")
        (task,) = fleet.push(other, ["node-2"], kind="evaluate")
        fleet.result(task)
        fleet.fail(unreachable=True)
        (worker,) = [worker for worker in running.node._pool if worker.task is not None]
        eventually(lambda: worker._paused, what="the worker's output to be left in its pipe")
        assert len(running.node._shipper._lines) < 20_000
        fleet.fail(unreachable=False)
        fleet.stop(run)
        eventually(lambda: not exists(worker.pid), what="the flooding worker to be gone")


def test_blas_threads_and_no_credentials_in_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("FLQ_DSN", "host=secret")
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = """
    @app.train()
    def train(msg, context):
        found = {name: value for name, value in os.environ.items() if name.startswith(("FLQ", "PG", "OMP"))}
        return Message(RecordDict({"c": ConfigRecord(found)}), reply_to=msg)
    """
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, slots=1)):
        run = fleet.add_run(write_app(tmp_path / "app", code))
        (task,) = fleet.push(run, ["node"])
        assert dict(fleet.content(task).config_records["c"]) == {"OMP_NUM_THREADS": str(os.cpu_count())}


def test_seeds_depend_on_node_group_and_kind_only(tmp_path):
    code = """
    IMPORTED = random.random()

    @app.train()
    def train(msg, context):
        drawn = {"import": IMPORTED, "random": random.random(), "numpy": float(np.random.rand())}
        return Message(RecordDict({"m": MetricRecord(drawn)}), reply_to=msg)
    """

    def drawn(where: Path, *, isolation: str, seed: int = 7) -> list[RecordDict]:
        fleet = FleetDouble()
        with supernode(fleet, node_options(where, nodes=2, isolation=isolation)):
            run = fleet.add_run(tmp_path / "app", seed=seed)
            found = []
            for name, group in (("node-1", "1"), ("node-2", "1"), ("node-1", "2"), ("node-1", "1")):
                (task,) = fleet.push(run, [name], group=group)
                found.append(fleet.content(task))
            return found

    write_app(tmp_path / "app", code)
    first = drawn(tmp_path / "a", isolation="run")
    assert first[0] == first[3]
    assert len({record.metric_records["m"]["random"] for record in first}) == 3
    assert len({record.metric_records["m"]["numpy"] for record in first}) == 3
    assert len({record.metric_records["m"]["import"] for record in first}) == 1
    assert drawn(tmp_path / "b", isolation="task") == first
    assert drawn(tmp_path / "c", isolation="run", seed=8)[0] != first[0]


def test_a_hundred_nodes(tmp_path):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=100, slots=2)):
        run = fleet.add_run(write_app(tmp_path / "app"))
        for _ in range(3):
            for task in fleet.push(run, list(fleet.specs)):
                fleet.content(task)
        assert len(fleet.results) == 300
        assert fleet.calls["claim"] < 40


def test_one_node_and_run_never_has_two_tasks_at_once(tmp_path):
    code = """
    @app.train()
    def train(msg, context):
        mark = Path(context.run_config["folder"], f"{context.run_id}-{context.node_id}")
        mark.touch(exist_ok=False)
        time.sleep(0.002)
        mark.unlink()
        return Message(RecordDict(), reply_to=msg)
    """
    (tmp_path / "marks").mkdir()
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, nodes=2, slots=3)):
        project = write_app(tmp_path / "app", code)
        runs = [fleet.add_run(project, config={"folder": str(tmp_path / "marks")}) for _ in range(2)]
        tasks = [task for _ in range(10) for run in runs for task in fleet.push(run, ["node-1", "node-2"])]
        for task in tasks:
            fleet.content(task)
