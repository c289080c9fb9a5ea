"""Which dependencies of an app are met here, and how it is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from flq.apps import deps
from flq.apps.deps import install_command, unchecked_dependencies, unmet_dependencies
from flq.apps.environments import _beneath
from flq.apps.project import Project
from flq.local.process import python_environment
from tests.wheels import installed


def needing(*requirements: str) -> Project:
    return Project(
        path=Path("/app"),
        name="app",
        version="1",
        serverapp="app:server",
        clientapp="app:client",
        config={},
        dependencies=requirements,
    )


def unmet(*requirements: str) -> list[str]:
    return [str(found) for found in unmet_dependencies(needing(*requirements))]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_is_installed_is_met():
    assert unmet("numpy", "NumPy>=2", "scikit_learn>=1", "flq", "FLQ>=0.1") == []


def test_what_is_not_installed_or_too_old_is_told_with_what_there_is(packages: Path):
    installed(packages, "wardtools", "1.2")
    wanted = ("wardtools>=2", "no-such-package", "no-such-package[extra]>=1")
    assert unmet("numpy", *wanted) == ["wardtools>=2 (1.2 is installed)", *wanted[1:]]
    assert unmet("flq>=99")[0].startswith("flq>=99 (0.")


def test_a_version_before_a_release_is_one(packages: Path):
    installed(packages, "wardtools", "2.0rc1")
    assert unmet("wardtools>=1.9") == []
    assert unmet("wardtools>=2") == ["wardtools>=2 (2.0rc1 is installed)"]


def test_a_version_that_is_none_fits_to_no_demand(packages: Path):
    installed(packages, "wardtools", "yesterday")
    assert unmet("wardtools") == []
    assert unmet("wardtools>=1") == ["wardtools>=1 (yesterday is installed)"]


def test_what_does_not_apply_here_is_met():
    assert unmet("no-such-package; sys_platform == 'win32'") == []
    assert unmet("no-such-package>=1; python_version > '3'") == ["no-such-package>=1"]


def test_extras_are_looked_into(packages: Path):
    extra = ['numpy>=2; extra == "fast"', 'wardtools>=3; extra == "plots"', 'lost; extra == "maps"']
    installed(packages, "base", requires=['never; python_version < "3"', *extra], extras=["fast", "plots", "maps"])
    installed(packages, "wardtools", "1.2")
    assert unmet("base", "base[fast]", "base[unheard-of]") == []
    assert unmet("base[plots,fast]>=1") == ["base[fast,plots]>=1 (which needs wardtools>=3; 1.2 is installed)"]
    assert unmet("base[maps]") == ["base[maps] (which needs lost)"]


def test_extras_of_extras_are_looked_into_once(packages: Path):
    installed(packages, "one", requires=['two[all]; extra == "all"'], extras=["all"])
    installed(packages, "two", requires=['one[all]; extra == "all"', 'lost; extra == "all"'], extras=["all"])
    assert unmet("one[all]") == ["one[all] (which needs lost)"]


def test_of_a_direct_reference_the_presence_counts(packages: Path):
    installed(packages, "wardtools", "1.2")
    project = needing("wardtools @ https://example.org/wardtools.whl", "lost @ https://example.org/lost.whl", "numpy")
    assert [str(found) for found in unmet_dependencies(project)] == ["lost @ https://example.org/lost.whl"]
    assert unchecked_dependencies(project) == ["wardtools @ https://example.org/wardtools.whl"]


def test_the_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch):
    command = f"{sys.executable} -m pip install 'scikit-learn>=1.6' numpy"
    assert install_command(["scikit-learn>=1.6", "numpy"]) == command
    monkeypatch.setattr(deps, "find_spec", lambda _: None)
    assert install_command(["numpy"]) == f"uv pip install --python {sys.executable} numpy"


@pytest.mark.parametrize("module", ["flq.node.execution", "flq.exec.serverapp"])
def test_all_that_is_loaded_before_an_app_is_kept_as_it_is(module: str):
    code = f"""
import sys
from importlib.metadata import packages_distributions
before = set(sys.modules)
import {module} as process
getattr(process, "_import_ahead", lambda: None)()
known = packages_distributions()
print(*(name for module in set(sys.modules) - before for name in known.get(module, ())))
"""
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, env=python_environment({}), capture_output=True, text=True, check=True)
    loaded = {canonicalize_name(name) for name in done.stdout.split()}
    assert "numpy" in loaded
    assert loaded <= set(_beneath())
