"""`import flwr` in the processes of an app."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flq.apps import alias, strategy
from flq.apps.flower_names import ABSENT, MODULES
from flq.apps.project import load_project
from flq.wire.records import ArrayRecord


@pytest.fixture
def installed() -> Iterator[None]:
    before = list(sys.meta_path)
    alias.install()
    yield
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if alias.covers(name)]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("module", MODULES)
def test_every_name_of_the_list_is_there(module: str):
    found = importlib.import_module(module)
    assert [name for name in MODULES[module] if getattr(found, name) is None] == []


@pytest.mark.usefixtures("installed")
def test_names_of_different_roots_are_the_same_objects():
    from flwr.common import ArrayRecord as FromCommon  # type: ignore[import-not-found]
    from flwr.common import ParametersRecord
    from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]
    from flwr.serverapp.strategy.fedavg import FedAvg as FromItsModule  # type: ignore[import-not-found]

    assert FromCommon is ArrayRecord is ParametersRecord
    assert FedAvg is strategy.FedAvg is FromItsModule


@pytest.mark.usefixtures("installed")
def test_the_top_package_has_its_modules_as_attributes():
    import flwr as fl  # type: ignore[import-not-found]

    assert fl.serverapp.ServerApp is fl.server.ServerApp
    assert fl.clientapp.mod.fixedclipping_mod is not fl.client.mod.fixedclipping_mod
    assert fl.__version__.startswith("1.")


@pytest.mark.usefixtures("installed")
def test_a_star_import_brings_the_names_of_a_module():
    names: dict[str, object] = {}
    exec("from flwr.serverapp.strategy import *", names)  # noqa: S102 - the form is what is tested
    assert names["Krum"] is strategy.Krum


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in ABSENT.items() for n in names])
def test_an_absent_name_says_why(module: str, name: str):
    with pytest.raises(ImportError, match=rf"of flq .* has no name '{name}': {ABSENT[module][name][:20]}"):
        getattr(importlib.import_module(module), name)


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_and_an_unknown_module_are_named():
    with pytest.raises(ImportError, match=r"'flwr.app' of flq .* has no name 'Arrray'"):
        from flwr.app import Arrray  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"flq .* has no module 'flwr.supernode'"):
        import flwr.supernode  # type: ignore[import-not-found]  # noqa: F401


def test_nothing_is_imported_that_is_not_used():
    code = (
        "import sys; from flq.apps import alias; alias.install(); import flwr.server, flwr.app;"
        " sys.exit('flq.apps.legacy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PROJECT = """
[project]
name = "old-app"
version = "1.0.0"
dependencies = ["flwr[simulation]>=1.15", "numpy>=1.26", "mine @ file:///home/ada/mine"]

[tool.flwr.app]
publisher = "ada"
fab-include = ["data/*.csv"]

[tool.flwr.app.components]
serverapp = "old_app.server_app:app"
clientapp = "old_app.client_app:app"

[tool.flwr.app.config]
num-server-rounds = 3
train.lr = 0.1

[tool.flwr.federations.local-simulation]
options.num-supernodes = 10
"""


def test_a_project_for_flower_is_read_as_it_is(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    project = load_project(tmp_path)
    assert (project.serverapp, project.clientapp) == ("old_app.server_app:app", "old_app.client_app:app")
    assert project.config == {"num-server-rounds": 3, "train.lr": 0.1}
    assert project.dependencies == ("numpy>=1.26",), "flq stands for flwr"
    assert project.include == ("data/*.csv",)
    assert project.flower_alias
    assert "mine @ file:///home/ada/mine" in project.warnings[0]


def test_the_alias_can_be_turned_off_and_on(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(PROJECT + "\n[tool.flq]\nflwr-alias = false\n")
    assert not load_project(tmp_path).flower_alias
    ours = PROJECT.replace("[tool.flwr.app.components]", "[tool.flq.app]")
    (tmp_path / "pyproject.toml").write_text(ours)
    assert not load_project(tmp_path).flower_alias
    (tmp_path / "pyproject.toml").write_text(ours + "\n[tool.flq]\nflwr-alias = true\n")
    assert load_project(tmp_path).flower_alias
