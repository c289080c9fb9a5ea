"""Mistakes in an app's code: its traceback is shown, cut to its own files, and the run is finished with the reason."""

from __future__ import annotations

import io
import zipfile
from contextlib import closing
from pathlib import Path

import pytest

from flq.apps.bundle import pack
from flq.apps.project import load_project
from flq.link.control import DbControl
from flq.local import federation
from tests.acceptance.flq_command import Flq
from tests.acceptance.make_app import CLIENT, SERVER, make_app
from tests.acceptance.mistakes import failed_run
from tests.integration import link_acts
from tests.waiting import eventually

pytestmark = pytest.mark.acceptance


def server_with(first: str) -> str:
    """The server whose main begins with a statement."""
    return SERVER.replace("rounds = context", f"{first}\n        rounds = context")


def client_with(first: str) -> str:
    """The client whose training begins with a statement."""
    return CLIENT.replace('print("training', f'{first}\n        print("training')


def with_line(code: str, line: str) -> str:
    """`code` with one more line at the top."""
    return f"\n    {line}\n{code}"


@pytest.mark.parametrize(
    ("name", "line", "reason", "shown"),
    [
        (
            "import-raises", 'x = {}["here"]', "importing tiny.server failed: KeyError: 'here'",
            'File "tiny/server.py", line 2, in <module>\n    x = {}["here"]',
        ),
        (
            "import-syntax", "def x(:", "importing tiny.server failed: SyntaxError: invalid syntax (server.py, line 2)",
            'File "tiny/server.py", line 2\n    def x(:',
        ),
        (
            "import-missing", "import no_such_module",
            "the app needs the module no_such_module, which is not installed here",
            "hint: list it in [project] dependencies and install it where the app runs",
        ),
    ],
)  # fmt: skip
def test_a_serverapp_that_cannot_be_imported(
    flq: Flq, tmp_path: Path, *, name: str, line: str, reason: str, shown: str
):
    failed = failed_run(flq, make_app(tmp_path, server=with_line(SERVER, line)), name)
    assert failed.reason == reason
    assert shown in failed.err
    assert failed.err.count(reason) == 2  # with its traceback, and as the run's reason


@pytest.mark.parametrize(
    ("name", "component", "reason"),
    [
        ("no-module", "tiny.srver:app", "the app has no module tiny.srver, which pyproject.toml names"),
        ("no-object", "tiny.server:ap", "the module tiny.server has no 'ap'"),
        ("wrong-kind", "tiny.client:app", "tiny.client:app is no ServerApp but of type ClientApp"),
    ],
)
def test_a_serverapp_that_is_not_where_the_project_says(
    flq: Flq, tmp_path: Path, *, name: str, component: str, reason: str
):
    app = make_app(tmp_path)
    file = app / "pyproject.toml"
    file.write_text(file.read_text().replace("tiny.server:app", component))
    failed = failed_run(flq, app, name)
    assert failed.reason == reason
    assert "hint: " in failed.err


def test_a_main_that_raises_below_other_libraries(flq: Flq, tmp_path: Path):
    app = make_app(tmp_path, server=server_with('import json; json.loads("{")'))
    failed = failed_run(flq, app, "main-raises")
    assert failed.reason.startswith("ServerApp raised JSONDecodeError: Expecting property name")
    assert 'File "tiny/server.py", line 11, in main\n    import json; json.loads("{")' in failed.err
    assert "json/decoder.py" not in failed.shown
    assert failed.err.count("Traceback") == 1


def test_a_main_that_exits(flq: Flq, tmp_path: Path):
    failed = failed_run(flq, make_app(tmp_path, server=server_with('raise SystemExit("no data")')), "main-exits")
    assert failed.reason == "ServerApp exited with 'no data'"
    assert 'File "tiny/server.py", line 11, in main' in failed.err


def test_a_serverapp_whose_process_dies_again_and_again(flq: Flq, tmp_path: Path):
    failed = failed_run(flq, make_app(tmp_path, server=server_with("import os; os._exit(3)")), "main-dies")
    death = "ServerApp exited with code 3 before its main had ended"
    assert failed.reason == f"5 attempts have ended early, the last one because {death}"
    assert failed.err.count(f"[superexec] attempt 1: {death}") == 1


def test_a_clientapp_that_cannot_be_imported(flq: Flq, tmp_path: Path):
    app = make_app(tmp_path, client=with_line(CLIENT, 'x = {}["here"]'))
    failed = failed_run(flq, app, "client-import")
    why = "the ClientApp cannot be loaded: importing tiny.client failed: KeyError: 'here'"
    nodes = "node-1, node-2, node-3 and 1 more"
    assert failed.reason == (
        f"ServerApp raised NoUsableReply: round 1: none of 4 replies can be used: {nodes}: error 1: {why}"
    )
    assert 'File "tiny/client.py", line 2, in <module>\n    x = {}["here"]' in failed.shown
    assert failed.shown.count('x = {}["here"]') == 1


def test_a_clientapp_that_raises_on_every_node(flq: Flq, tmp_path: Path):
    app = make_app(tmp_path, client=client_with('raise ValueError("no such column: age")'))
    failed = failed_run(flq, app, "client-raises")
    assert failed.reason.endswith(": error 2: ClientApp raised ValueError: no such column: age")
    assert 'File "tiny/client.py", line 10, in train' in failed.shown
    assert failed.shown.count("line 10, in train") == 1
    assert "nor are those of node-2, node-3, node-4, for the same reason" in failed.err


def test_a_clientapp_that_raises_on_one_node_is_named_and_the_run_goes_on(flq: Flq, tmp_path: Path):
    line = 'if context.node_config["partition-id"] == 2: raise ValueError("no such column: age")'
    done = flq.ended("run", make_app(tmp_path, client=client_with(line)), "--stream", "--name", "one-raises")
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, out + err
    assert out.splitlines()[-1] == "sum 8.0"
    told = "the reply of node-3 is not used: error 2: ClientApp raised ValueError: no such column: age"
    assert err.count(told) == 2  # once a round


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        (
            "no-handler", "@app.train()\n", "\n",
            "error 2: the ClientApp has no handler for train; it has: evaluate",
        ),
        (
            "no-reply", "weights[0] += 1", "return 3",
            "error 2: the handler of train, tiny.client.train, returned int",
        ),
        (
            "client-dies", "weights[0] += 1", "import os; os._exit(3)",
            "error 8: the process of the ClientApp exited with code 3",
        ),
    ],
)  # fmt: skip
def test_a_clientapp_that_does_not_answer(flq: Flq, tmp_path: Path, *, name: str, old: str, new: str, reason: str):
    assert old in CLIENT
    failed = failed_run(flq, make_app(tmp_path, client=CLIENT.replace(old, new)), name)
    assert reason in failed.reason


def test_a_bundle_that_came_past_the_command_line_is_refused_where_it_is_unpacked(flq: Flq, tmp_path: Path):
    """Somebody with a database of their own submits what `flq run` would not: nothing of it is written anywhere."""
    found = federation.addresses(flq.home)
    assert found is not None
    with closing(DbControl(found.dsn)) as control:
        control.submit(link_acts.submission("smuggled", bundle=with_entry(make_app(tmp_path), "../outside.py")))
    eventually(lambda: flq.json("show", "smuggled")["run"]["status"] == "finished", what="the end of the run")
    (row,) = flq.sql("select outcome, reason from flq.runs where run = 'smuggled'")
    assert row["outcome"] == "failed"
    assert row["reason"] == "the bundle's entry '../outside.py' is refused: its name '../outside.py' is not allowed"
    assert not list(flq.home.rglob("outside.py"))


def with_entry(app: Path, name: str) -> bytes:
    """The bundle of an app, with one more entry."""
    packed = io.BytesIO(pack(load_project(app)).data)
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr(name, "print('here')")
    return packed.getvalue()
