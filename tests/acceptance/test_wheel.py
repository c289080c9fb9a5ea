"""What is released works by itself: built, installed elsewhere, used by somebody who may not write where it lies."""

from __future__ import annotations

import os
import pwd
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flq.cli.new import NAMES
from tests.acceptance.flq_command import open_python
from tests.release import ROOT, Environment, build, contents, first_day, install, unpacked

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel."""
    sdist, wheel = sorted(build(tmp_path_factory.mktemp("dist")), key=lambda path: path.suffix)
    return sdist, wheel


def test_what_is_in_the_wheel_and_what_is_not(built: tuple[Path, Path]):
    names = set(contents(built[1]))
    sources = [path.relative_to(ROOT) for path in ROOT.glob("flq/**/*") if path.is_file()]
    assert {str(path) for path in sources if "__pycache__" not in path.parts} <= names
    assert {
        "flq/py.typed",
        "flq/link/sql/tasks.sql",
        "flq/migrations/env.py",
        "flq/migrations/script.py.mako",
        "flq/migrations/versions/0001_initial_schema.py",
        "flq/migrations/sql/0001_views.sql",
        *(f"flq/cli/templates/{name}/pyproject.toml" for name in NAMES),
    } <= names
    others = {name for name in names if not name.startswith("flq/")}
    assert {name.split("/")[0] for name in others} == {f"{'-'.join(built[1].name.split('-')[:2])}.dist-info"}
    assert not [name for name in names if "test" in Path(name).name or name.endswith(".pyc")]


def test_the_metadata_is_true(built: tuple[Path, Path]):
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = wheel.read(name).decode()
    assert "Requires-Python: >=3.11" in metadata
    for minor in (11, 12, 13):  # make wheels tries them
        assert f"Classifier: Programming Language :: Python :: 3.{minor}" in metadata
    assert "Classifier: Typing :: Typed" in metadata


def test_the_sdist_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path):
    sdist, wheel = built
    (again,) = build(tmp_path / "again", unpacked(sdist, tmp_path / "source"), "wheel")
    assert again.name == wheel.name
    assert contents(again) == contents(wheel)


@contextmanager
def nobody_may_write(environment: Environment) -> Iterator[Environment]:
    """The environment for somebody who cannot write into it: another user, if we are root, who may write everywhere."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        yield replace(environment, options={"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []})
        return
    folders = [environment.packages, *(path for path in environment.packages.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield environment
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_first_day_with_the_wheel_alone(built: tuple[Path, Path]):
    python = open_python() if os.geteuid() == 0 else sys.executable
    with tempfile.TemporaryDirectory(prefix="flq-test-") as scratch:
        Path(scratch).chmod(0o755)
        environment = install(python, built[1], Path(scratch) / "environment", beside=sysconfig.get_path("purelib"))
        day = Path(scratch) / "day"
        day.mkdir()
        with nobody_may_write(environment) as closed:
            told = list(first_day(closed, day))
    assert [line.split("=")[0] for line in told if "=" in line] == ["my-numpy accuracy", "my-sklearn accuracy"]
