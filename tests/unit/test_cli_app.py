"""`flq app check` and `flq build`. The app's code is run in real processes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flq.apps.bundle import pack
from flq.apps.bundle_file import open_app
from flq.apps.project import load_project
from flq.cli.main import main
from flq.errors import BundleError, ProjectError
from tests.acceptance.make_app import make_app
from tests.waiting import eventually

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return make_app(tmp_path / "tiny")


def checked(invoke: Invoke, app: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """What `flq app check` finds."""
    result = invoke("app", "check", app, "--json", *options)
    assert result.exit_code == code, result.output
    answer = json.loads(result.stdout)
    assert (answer["error"] is None) is (code == 0)
    data: dict[str, Any] = answer["data"]
    assert bool(data["problems"]) is (code == 1)
    return data


def messages(found: dict[str, Any]) -> list[str]:
    return [problem["message"] for problem in found["problems"]]


def states(found: dict[str, Any]) -> list[str]:
    return [entry["state"] for entry in found["entry_points"]]


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# What is found


def test_a_sound_app(invoke: Invoke, app: Path):
    (app / "data.csv").write_text("1,2\n")
    found = checked(invoke, app)
    packed = pack(load_project(app))
    assert (found["app"], found["version"], found["python"]) == ("tiny", "1.0.0", sys.executable)
    sizes = {name: (app / name).stat().st_size for name in packed.files}
    assert found["bundle"] == {
        "hash": packed.hash.hex(),
        "size": len(packed.data),
        "unpacked": sum(sizes.values()),
        "files": [{"name": name, "size": size} for name, size in sizes.items()],
    }
    assert found["entry_points"] == [
        {"half": "serverapp", "component": "tiny.server:app", "state": "ok", "provides": ["main"]},
        {"half": "clientapp", "component": "tiny.client:app", "state": "ok", "provides": ["evaluate", "train"]},
    ]
    assert found["config"] == {"num-rounds": 2, "nodes": 2}
    (numpy,) = found["dependencies"]
    assert (numpy["requirement"], numpy["met"]) == ("numpy", True)
    assert numpy["installed"]


def test_for_people(invoke: Invoke, app: Path):
    result = invoke("app", "check", app)
    assert result.exit_code == 0
    for told in ("tiny 1.0.0", "tiny.client:app, ok: evaluate, train", "tiny/server.py", "num-rounds  int   2"):
        assert told in result.stdout
    assert result.stderr == "nothing is wrong\n"
    edit(app / "pyproject.toml", '"numpy"', '"numpy", "no-such-thing>=1"')
    result = invoke("app", "check", app)
    assert result.exit_code == 1
    error, hint = result.stderr.splitlines()
    assert error == f"error: the app needs no-such-thing>=1, which {sys.executable} does not have"
    assert "install 'no-such-thing>=1'" in hint


def test_all_that_is_wrong_is_listed_at_once(invoke: Invoke, app: Path):
    edit(app / "pyproject.toml", '"numpy"', '"numpy<1", "no-such-thing"')
    edit(app / "pyproject.toml", "tiny.server:app", "tiny.sever:app")
    (app / "tiny" / "client.py").write_text("import os\n\ndef broken(:\n")
    (app / "tiny" / "zero.py").write_bytes(b"\0")
    found = checked(invoke, app, code=1)
    told = messages(found)
    assert told[0].startswith("the app needs numpy<1 (")
    assert told[1].startswith("the app needs no-such-thing,")
    assert told[2].startswith("tiny/client.py, line 3: ")
    assert told[3].startswith("tiny/zero.py")
    assert told[4] == "tiny.sever:app: the project has no module tiny.sever"
    assert len(told) == 5
    assert all(problem["hint"] for problem in found["problems"])
    assert states(found) == ["failed", "not tried"]
    assert [row["met"] for row in found["dependencies"]] == [False, False]


def test_a_module_that_is_left_out_of_the_bundle(invoke: Invoke, app: Path):
    (app / ".gitignore").write_text("client.py\n")
    found = checked(invoke, app, code=1)
    assert messages(found) == ["tiny.client:app: tiny/client.py is left out of the bundle"]
    assert ".gitignore" in found["problems"][0]["hint"]
    assert states(found) == ["ok", "failed"]


def test_what_a_module_of_the_app_needs_is_looked_for_in_the_bundle(invoke: Invoke, app: Path):
    (app / "conftest.py").touch()
    edit(app / "tiny" / "server.py", "import numpy as np", "import conftest")
    found = checked(invoke, app, code=1)
    assert states(found) == ["failed", "ok"]
    assert messages(found)[0].startswith(
        "tiny.server:app: the app needs the module conftest, which is not installed here"
    )


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("from flq.apps import ServerApp\napp = ServerApp()", "tiny.server:app: the ServerApp has no main function"),
        ("from flq.apps import ClientApp\napp = ClientApp()", "tiny.server:app is no ServerApp but of type ClientApp"),
        ("", "tiny.server:app: the module tiny.server has no 'app'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os\nos._exit(3)", "tiny.server:app: importing it ended the process (exit code 3)"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "importing it ended the process (SIGSEGV)"),
    ],
)
def test_an_app_that_cannot_be_loaded(invoke: Invoke, app: Path, code: str, told: str):
    (app / "tiny" / "server.py").write_text(code)
    found = checked(invoke, app, code=1)
    (message,) = messages(found)
    assert told in message
    assert "/tmp/flq-check-" not in message  # it speaks of the project, not of where it was unpacked
    assert states(found) == ["failed", "ok"]


def test_a_clientapp_that_answers_nothing(invoke: Invoke, app: Path):
    (app / "tiny" / "client.py").write_text("from flq.apps import ClientApp\napp = ClientApp()")
    found = checked(invoke, app, code=1)
    assert messages(found) == ["tiny.client:app: the ClientApp answers no messages"]


def test_the_code_of_an_app_runs_in_processes_of_its_own(invoke: Invoke, app: Path, tmp_path: Path):
    seen = tmp_path / "seen"
    edit(
        app / "tiny" / "__init__.py", "",
        f"import os, sys; print('hello'); sys.stdout.flush()\n"
        f"open({str(seen)!r}, 'a').write(f'{{os.getpid()}} {{os.listdir()}}\\n')\n",
    )  # fmt: skip
    found = checked(invoke, app)
    assert states(found) == ["ok", "ok"]
    lines = [line.split(" ", 1) for line in seen.read_text().splitlines()]
    assert len({pid for pid, _ in lines} - {str(os.getpid())}) == 2
    assert [folder for _, folder in lines] == ["[]", "[]"]
    assert "tiny" not in sys.modules


def test_no_code_is_run_if_it_is_not_wanted(invoke: Invoke, app: Path, tmp_path: Path):
    (app / "tiny" / "__init__.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w')\n")
    assert states(checked(invoke, app, "--no-import")) == ["not tried", "not tried"]
    assert not (tmp_path / "seen").exists()
    assert "was not run" in invoke("app", "check", app, "--no-import").stderr


def test_an_import_that_does_not_end_is_ended(
    invoke: Invoke, app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flq.cli.app.IMPORT_SECONDS", 4.0)
    pids = tmp_path / "pids"
    (app / "tiny" / "client.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    found = checked(invoke, app, code=1)
    assert messages(found) == ["tiny.client:app: importing it took longer than 4 s"]
    assert states(found) == ["ok", "failed"]
    if pids.exists():  # else it was ended before it had begun
        started = pids.read_text().split()
        eventually(lambda: not any(map(alive, started)), what="the end of what the app has started")


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_no_project_is_another_exit_code(invoke: Invoke, app: Path, tmp_path: Path):
    result = invoke("app", "check", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no" in result.stderr
    (app / "link.py").symlink_to("tiny/server.py")
    result = invoke("app", "check", app)
    assert result.exit_code == 2
    assert "link.py is a link" in result.stderr


# Bundles as files


def test_build(invoke: Invoke, app: Path, tmp_path: Path):
    result = invoke("build", app)
    digest, file = result.stdout.split()
    assert file == f"tiny-1.0.0-{digest[:8]}.flq.zip"
    data = (tmp_path / file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    assert data == pack(load_project(app)).data
    again = json.loads(invoke("build", app, "-o", "deep/er", "--json").stdout)["data"]
    assert (again["hash"], again["path"], again["size"]) == (digest, f"deep/er/{file}", len(data))
    assert (tmp_path / "deep" / "er" / file).read_bytes() == data
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == [file]


def test_a_version_may_hold_what_a_file_name_may_not(invoke: Invoke, app: Path):
    edit(app / "pyproject.toml", "1.0.0", "../1.0 x")
    assert invoke("build", app).stdout.split(maxsplit=1)[1].startswith("tiny-.._1.0_x-")


def test_build_where_nothing_can_be_written(invoke: Invoke, app: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    result = invoke("build", app, "-o", tmp_path / "file" / "below")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_a_bundle_s_file_stands_for_its_project(invoke: Invoke, app: Path, tmp_path: Path):
    file = tmp_path / invoke("build", app).stdout.split()[1]
    project, packed = open_app(file)
    original, packed_original = open_app(app)
    assert packed == packed_original
    assert (project.name, project.config, project.path) == (original.name, original.config, file)
    found = checked(invoke, file)
    assert found["bundle"]["hash"] == packed.hash.hex()
    assert states(found) == ["ok", "ok"]


def test_files_that_are_no_bundles(tmp_path: Path, app: Path):
    with pytest.raises(BundleError, match=r"nothing\.flq\.zip cannot be read: No such file"):
        open_app(tmp_path / "nothing.flq.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(BundleError, match=r"text\.zip: the bundle is no archive"):
        open_app(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ProjectError, match=rf"there is no {tmp_path}/empty\.zip/pyproject\.toml"):
        open_app(tmp_path / "empty.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(app / "pyproject.toml", "pyproject.toml")
        archive.writestr("../evil.py", "")
    with pytest.raises(BundleError, match=r"evil\.zip: .* refused"):
        open_app(tmp_path / "evil.zip")
