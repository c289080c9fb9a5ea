"""Dependencies of apps on a node, with real workers and a real pip that has no network."""

from __future__ import annotations

import fcntl
import json
import socket
import sys
import time
from pathlib import Path

import pytest

from flq.apps.environments import Installation
from flq.errors import AppLoadError
from flq.wire.ids import RunId
from tests.fleet_double import FleetDouble, supernode
from tests.node_app import node_options, write_app
from tests.waiting import eventually
from tests.wheels import installed, pip_settings, wheel

TELLS = """
import {package}

@app.train()
def train(msg, context):
    found = {{"version": {package}.version, "file": {package}.__file__, "numpy": np.__version__}}
    return Message(RecordDict({{"c": ConfigRecord(found)}}), reply_to=msg)
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all the wheels that there are."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in pip_settings(folder).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that are installed on the node."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    return tmp_path / "packages"


def app(tmp_path: Path, *dependencies: str, package: str = "wardtools") -> Path:
    return write_app(tmp_path / "app", TELLS.format(package=package), dependencies=dependencies)


def error(tmp_path: Path, *dependencies: str) -> tuple[int | None, str, FleetDouble, RunId]:
    """The error of the node's only task."""
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path, name="ward-3")):
        run = fleet.add_run(app(tmp_path, *dependencies))
        (task,) = fleet.push(run, ["ward-3"])
        return (*fleet.error(task), fleet, run)


def test_a_missing_package_is_named_with_node_and_command(tmp_path):
    code, text, fleet, run = error(tmp_path, "numpy", "wardtools>=2")
    assert code == 1
    assert "the app needs wardtools>=2, which node ward-3 does not have" in text
    assert f"{sys.executable} -m pip install 'wardtools>=2'; or let flq do it with --install-deps" in text
    eventually(lambda: any("node ward-3 does not have" in line for *_, line in fleet.output(run)), what="the error")


def test_a_version_that_does_not_fit_is_named(tmp_path, packages):
    installed(packages, "wardtools", "1.2")
    code, text, *_ = error(tmp_path, "wardtools>=2")
    assert code == 1
    assert "wardtools>=2 (1.2 is installed), which node ward-3 does not have" in text


def test_what_an_extra_needs_is_named(tmp_path, packages):
    installed(packages, "wardtools", "1.2", requires=['maps>=3; extra == "maps"'], extras=["maps"])
    code, text, *_ = error(tmp_path, "wardtools[maps]")
    assert code == 1
    assert "wardtools[maps] (which needs maps>=3), which node ward-3" in text
    assert "-m pip install 'wardtools[maps]'" in text


def test_markers_direct_references_and_what_is_installed(tmp_path, packages):
    installed(packages, "wardtools", "1.2")
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        direct = "wardtools @ https://example.org/wardtools-7.whl"
        run = fleet.add_run(app(tmp_path, direct, "never; sys_platform == 'win32'", "numpy>=2"))
        (task,) = fleet.push(run, ["node"])
        assert fleet.content(task).config_records["c"]["version"] == "1.2"
        told = f"{direct} is installed here, but whether it is from there cannot be checked"
        eventually(lambda: ("node", "WARNING", told) in fleet.output(run), what="the warning")


def test_what_is_installed_after_an_error_is_found_by_the_next_task(tmp_path, packages):
    fleet = FleetDouble()
    with supernode(fleet, node_options(tmp_path)):
        run = fleet.add_run(app(tmp_path, "wardtools>=2"))
        (task,) = fleet.push(run, ["node"])
        assert fleet.error(task)[0] == 1
        installed(packages, "wardtools", "2.5")
        (task,) = fleet.push(run, ["node"])
        assert fleet.content(task).config_records["c"]["version"] == "2.5"


# --- installed


def installing(tmp_path: Path, **changes: object):
    return node_options(tmp_path, environments=tmp_path / "envs", **changes)


def test_what_is_missing_is_installed_and_nothing_else(tmp_path, wheels, packages):
    """What is installed and fits stays; so does numpy, though a newer one is to be had."""
    wheel(wheels, "wardtools", "2.0", requires=["pills>=1", "maps", "numpy"])
    wheel(wheels, "wardtools", "1.0")
    wheel(wheels, "maps", "3.0")
    wheel(wheels, "pills", "1.5")
    wheel(wheels, "numpy", "999")
    installed(packages, "pills", "1.1")
    installed(packages, "wardtools", "1.0")
    fleet = FleetDouble()
    with supernode(fleet, installing(tmp_path)):
        run = fleet.add_run(app(tmp_path, "wardtools>=2", "numpy"))
        (task,) = fleet.push(run, ["node"])
        found = fleet.content(task, timeout=60).config_records["c"]
        assert found["version"] == "2.0"
        assert found["numpy"] != "999"
        (folder,) = (tmp_path / "envs").iterdir()
        assert str(found["file"]).startswith(f"{folder}/wardtools/")
        assert {path.name for path in folder.iterdir() if path.suffix != ".dist-info"} == {
            "wardtools", "maps", "flq-environment.json",
        }  # fmt: skip
        described = json.loads((folder / "flq-environment.json").read_text())
        assert sorted(described["installed"]) == ["maps==3.0", "wardtools==2.0"]
    first, second = (text for _, _, text in fleet.output(run))
    assert first == "installing dependencies: wardtools>=2 (1.0 is installed)"
    assert second.startswith("dependencies installed in ")


def test_an_environment_is_built_once(tmp_path, wheels):
    """By one of several workers, and used again by the next run's."""
    wheel(wheels, "wardtools", "2.0")
    fleet = FleetDouble()
    with supernode(fleet, installing(tmp_path, nodes=3, slots=3)):
        run = fleet.add_run(app(tmp_path, "wardtools"))
        for task in fleet.push(run, ["node-1", "node-2", "node-3"]):
            fleet.content(task, timeout=60)
        said = [text for _, _, text in fleet.output(run)]
        assert said.count("installing dependencies: wardtools") == 1
        for path in wheels.iterdir():
            path.unlink()
        other = fleet.add_run(tmp_path / "app")
        (task,) = fleet.push(other, ["node-1"])
        fleet.content(task)
        assert not fleet.output(other)
    assert len(list((tmp_path / "envs").iterdir())) == 1


def test_one_that_is_not_the_first_waits(tmp_path, wheels):
    wheel(wheels, "wardtools", "2.0")
    fleet = FleetDouble()
    with supernode(fleet, installing(tmp_path)):
        run = fleet.add_run(app(tmp_path, "wardtools"))
        (task,) = fleet.push(run, ["node"])
        fleet.content(task, timeout=60)
        (built,) = (tmp_path / "envs").iterdir()
        aside = built.rename(tmp_path / "aside")
        building = built.with_suffix(".building")
        building.mkdir()
        other = fleet.add_run(tmp_path / "app")
        with (building / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (task,) = fleet.push(other, ["node"])
            waiting = ("node", "INFO", "waiting for another process that installs the same dependencies")
            eventually(lambda: waiting in fleet.output(other), what="the wait")
            aside.rename(built)
        fleet.content(task)
        assert fleet.output(other) == [waiting]
        assert list((tmp_path / "envs").iterdir()) == [built]


def test_what_a_killed_process_has_left_is_in_nobodys_way(tmp_path, wheels):
    wheel(wheels, "wardtools", "2.0")
    fleet = FleetDouble()
    with supernode(fleet, installing(tmp_path, isolation="task")):
        run = fleet.add_run(app(tmp_path, "wardtools"))
        (task,) = fleet.push(run, ["node"])
        fleet.content(task, timeout=60)
        (built,) = (tmp_path / "envs").iterdir()
        left = built.rename(built.with_suffix(".building"))
        (left / "packages").mkdir()
        (left / "report.json").write_text("{")
        (task,) = fleet.push(run, ["node"])
        fleet.content(task, timeout=60)
    assert list((tmp_path / "envs").iterdir()) == [built]


def test_a_failed_installation_leaves_nothing_and_shows_what_pip_says(tmp_path, wheels):
    wheel(wheels, "wardtools", "1.0")
    fleet = FleetDouble()
    with supernode(fleet, installing(tmp_path)):
        run = fleet.add_run(app(tmp_path, "wardtools>=2"))
        for _ in range(2):
            (task,) = fleet.push(run, ["node"])
            code, text = fleet.error(task, timeout=60)
            assert code == 1
            assert "dependencies cannot be installed on node node: ERROR: No matching distribution found" in text
            assert "from versions: 1.0" in text
        assert list((tmp_path / "envs").iterdir()) == []
        said = [text for _, _, text in fleet.output(run)]
        assert said.count("installing dependencies: wardtools>=2") == 1  # a worker tries once


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ("numpy<2", "the app needs numpy<2, but flq itself runs with 2."),
        ("oldmaths", "requires numpy<2"),
        ("flq>=99", "the app needs flq>=99, but flq itself runs with"),
    ],
)
def test_what_flq_runs_with_is_not_replaced(tmp_path, wheels, requirement, told):
    wheel(wheels, "oldmaths", "1.0", requires=["numpy<2"])
    wheel(wheels, "numpy", "1.26.4")
    fleet = FleetDouble()
    with supernode(fleet, installing(tmp_path)):
        run = fleet.add_run(app(tmp_path, requirement))
        (task,) = fleet.push(run, ["node"])
        code, text = fleet.error(task, timeout=60)
        assert code == 1
        assert told in text.replace("depends on", "requires")


def test_a_run_that_is_stopped_does_not_install_on(tmp_path, wheels, monkeypatch):
    """pip waits for an index that does not answer; it goes with its worker."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        fleet = FleetDouble()
        with supernode(fleet, installing(tmp_path)):
            run = fleet.add_run(app(tmp_path, "wardtools"))
            fleet.push(run, ["node"])
            caller, _ = silent.accept()
            fleet.stop(run)
            with caller:
                caller.settimeout(10)
                while caller.recv(1 << 16):  # the end comes when pip does
                    pass
        assert not fleet.results


def test_an_installation_has_its_time(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent, (tmp_path / "lock").open("w") as lock:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        installation = Installation(tmp_path, lock.fileno(), until=time.monotonic() + 0.2, where="this host")
        with pytest.raises(AppLoadError, match="on this host: pip took longer than"):
            installation.install(["wardtools"], tmp_path / "target")
        assert not (tmp_path / "target").exists()
