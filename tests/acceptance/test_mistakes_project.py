"""Mistakes in a project, a configuration or a bundle: told before anything is started or submitted."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.flq_command import Flq
from tests.acceptance.make_app import make_app
from tests.acceptance.mistakes import as_json, mistake

pytestmark = pytest.mark.acceptance


@pytest.fixture
def flq(tmp_path: Path) -> Flq:
    """The command, with a home that is not there: a broken project must not start a federation."""
    return Flq(tmp_path / "home")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return make_app(tmp_path / "app")


def edit(app: Path, old: str, new: str) -> None:
    file = app / "pyproject.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('serverapp = "tiny.server:app"', "", "tool.flq.app.serverapp is missing", 'serverapp = "tiny.server:app"'),
        ("tiny.server:app", "tiny.server", "is 'tiny.server'; it must be 'module:object'", "tiny.server:app"),
        ("serverapp =", "serverap =", "serverap is unknown; did you mean serverapp?", "serverapp, clientapp"),
        ('name = "tiny"', "", "project.name is missing", 'name = "my-app"'),
        ("num-rounds = 2", "num-rounds = [2]", "config.num-rounds is [2]; it must be a bool, a number or text", ""),
        ('["numpy"]', '["numpy >"]', "project.dependencies holds 'numpy >', which is no requirement", ""),
    ],
)
def test_a_broken_table_is_named_with_file_and_key(flq: Flq, app: Path, *, old: str, new: str, message: str, hint: str):
    edit(app, old, new)
    told = mistake(flq, "run", app, code=2)
    assert f"{app}/pyproject.toml: " in told.message
    assert message in told.message
    assert hint in told.hint
    assert as_json(flq, "run", app, code=2)["code"] == "project"
    assert not flq.home.exists()


@pytest.mark.parametrize(("table", "what"), [("", "is missing"), ("[tool.flq]\napp = 3", "is not a table")])
def test_a_project_without_the_table(flq: Flq, app: Path, table: str, what: str):
    (app / "pyproject.toml").write_text(f'[project]\nname = "tiny"\n{table}\n')
    told = mistake(flq, "run", app, code=2)
    assert told.message == f"{app}/pyproject.toml: [tool.flq.app] {what}"
    assert 'serverapp = "pkg.server:app"' in told.hint
    assert not flq.home.exists()


def test_a_pyproject_that_is_no_toml(flq: Flq, app: Path):
    (app / "pyproject.toml").write_text('[project\nname = "tiny"\n')
    told = mistake(flq, "run", app, code=2)
    assert told.message.startswith(f"{app}/pyproject.toml cannot be read: Expected ']'")
    assert "line 1" in told.message
    assert not flq.home.exists()


def test_a_folder_without_a_project_and_no_folder_at_all(flq: Flq, app: Path):
    (app / "pyproject.toml").unlink()
    assert mistake(flq, "run", app, code=2).message == f"there is no {app}/pyproject.toml"
    assert mistake(flq, "run", app / "no", code=2).message == f"there is no folder {app}/no"
    assert not flq.home.exists()


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ("num-round=3", "there is no 'num-round' in the project's configuration; the nearest is 'num-rounds'", "nodes"),
        ("num-rounds=many", "num-rounds is 'many'; it must be an integer", "the default is num-rounds=2"),
        ("num-rounds=1.5", "num-rounds is 1.5; it must be an integer", "the default is num-rounds=2"),
        ("num-rounds=true", "num-rounds is true; it must be an integer", "the default is num-rounds=2"),
        ("num-rounds", "'num-rounds' is no key=value", "num-rounds=5"),
        ("missing.toml", "missing.toml cannot be read: No such file or directory", "TOML"),
    ],
)
def test_a_wrong_run_config_is_named_with_the_nearest_key_or_the_type(
    flq: Flq, app: Path, *, given: str, message: str, hint: str
):
    told = mistake(flq, "run", app, "--run-config", given, code=2)
    assert told.message == message
    assert hint in told.hint
    assert as_json(flq, "run", app, "--run-config", given, code=2)["code"] == "run_config"
    assert not flq.home.exists()


def test_a_project_that_is_too_large(flq: Flq, app: Path):
    (app / "tiny" / "data.json").write_bytes(os.urandom(12 << 20))
    told = mistake(flq, "run", app, code=2)
    assert told.message.startswith("the bundle is larger than 10 MB; the largest files are tiny/data.json (12.0 MB)")
    assert told.hint == "leave some out with [tool.flq.app] exclude; data belongs onto the nodes"
    assert not flq.home.exists()


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes device files")


@pytest.mark.parametrize(
    ("make", "kind", "hint"),
    [
        (make_link, "a link", "put a copy in its place, or leave it out with [tool.flq.app] exclude"),
        (make_pipe, "no regular file", "leave it out with [tool.flq.app] exclude"),
        (make_device, "no regular file", "leave it out with [tool.flq.app] exclude"),
    ],
)
def test_a_project_with_a_link_or_a_special_file(
    flq: Flq, app: Path, *, make: Callable[[Path], None], kind: str, hint: str
):
    make(app / "tiny" / "odd.py")
    told = mistake(flq, "run", app, code=2)
    assert told.message == f"{app}/tiny/odd.py is {kind}, which cannot be packed"
    assert told.hint == hint
    assert not flq.home.exists()


def test_an_include_that_leads_out_of_the_project(flq: Flq, app: Path):
    edit(app, "[tool.flq.app]", '[tool.flq.app]\ninclude = ["../secrets/*.json"]')
    told = mistake(flq, "run", app, code=2)
    assert "tool.flq.app.include holds '../secrets/*.json', which leads out of the project" in told.message
    assert told.hint == "put a copy of it into the project"


def bundle(app: Path, name: str, mode: int) -> Path:
    """A bundle as nobody would build it: with an entry called `name` of a file of that `mode`."""
    file = app.parent / "evil.flq.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(app / "pyproject.toml", "pyproject.toml")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, "/etc/passwd")
    return file


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("../outside.py", stat.S_IFREG | 0o644, "its name '../outside.py' is not allowed"),
        ("/outside.py", stat.S_IFREG | 0o644, "its name '/outside.py' is not allowed"),
        ("tiny/link.py", stat.S_IFLNK | 0o777, "it is no regular file"),
        ("tiny/device.py", stat.S_IFCHR | 0o600, "it is no regular file"),
    ],
)
def test_a_bundle_that_cannot_be_trusted(flq: Flq, app: Path, *, name: str, mode: int, reason: str):
    file = bundle(app, name, mode)
    told = mistake(flq, "run", file, code=2)
    assert told.message == f"{file}: the bundle's entry {name!r} is refused: {reason}"
    assert told.hint
    assert not flq.home.exists()
    assert not (app.parent / "outside.py").exists()
