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
from tests.acceptance.flq_command import python_for_others
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
def closed(environment: Environment, *, user: str | None) -> Iterator[Environment]:
    """The environment for somebody who cannot write into it: for `user`, or for ourselves."""
    if user is not None:
        found = pwd.getpwnam(user)
        yield replace(environment, options={"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []})
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
    """By somebody who may not write where flq lies: root, who may write everywhere, is another user for that."""
    for_others = python_for_others() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="flq-test-") as scratch:
        Path(scratch).chmod(0o755)
        beside = sysconfig.get_path("purelib")
        environment = install(for_others or sys.executable, built[1], Path(scratch) / "environment", beside=beside)
        day = Path(scratch) / "day"
        day.mkdir()
        with closed(environment, user="nobody" if for_others else None) as theirs:
            told = list(first_day(theirs, day))
    assert [line.split("=")[0] for line in told if "=" in line] == ["my-numpy accuracy", "my-sklearn accuracy"]
