"""Dependencies of apps on the SuperExec's side, with real ServerApp processes and a real pip that has no network."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flq.errors import ProjectError
from flq.exec.launcher import Launcher
from flq.link.database import Database
from flq.wire.ids import RunId
from flq.wire.status import Outcome
from tests.integration.exec_acts import Bench
from tests.wheels import installed, pip_settings, wheel

HERE = f"the SuperExec on {socket.gethostname()}"


@pytest.fixture
def bench(dsn: str, db: Database, tmp_path: Path) -> Iterator[Bench]:
    found = Bench(dsn, db, tmp_path)
    yield found
    found.close()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that are installed beside the SuperExec."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    return tmp_path / "packages"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all the wheels that there are."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, value in pip_settings(folder).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def installing(bench: Bench) -> Bench:
    """The bench of a SuperExec that was started with --install-deps."""
    bench.launcher.close()
    bench.launcher = Launcher(
        dsn=bench.dsn,
        process_id=bench.superexec.process_id,
        home=bench.home,
        lifeline=bench.lifeline,
        threads=1,
        install_deps=True,
    )
    return bench


def failure(bench: Bench, run_id: RunId) -> tuple[str, str]:
    """Why the run failed: the reason, and the error of its attempt."""
    row = bench.row(run_id)
    (attempt,) = bench.control.attempts(str(run_id))
    assert row.outcome is Outcome.FAILED
    assert row.reason is not None
    assert attempt.error is not None
    return row.reason, attempt.error


@pytest.mark.parametrize(
    ("dependency", "told"),
    [
        ("wardtools>=2", "wardtools>=2 (1.2 is installed)"),
        ("lost", "lost"),
        ("wardtools[maps]", "wardtools[maps] (which needs maps>=3)"),
    ],
)
def test_what_is_missing_fails_the_run_with_host_and_command(bench: Bench, packages: Path, dependency: str, told: str):
    installed(packages, "wardtools", "1.2", requires=['maps>=3; extra == "maps"'], extras=["maps"])
    run_id = bench.submit("print('never')", dependencies=f'"numpy>=2", "{dependency}"')
    assert bench.launch() == "failed"
    reason, error = failure(bench, run_id)
    assert reason == f"the app needs {told}, which {HERE} does not have"
    assert error.startswith(reason)
    assert f"{sys.executable} -m pip install " in error
    assert dependency in error.splitlines()[-1]
    assert "never" not in str(bench.log(run_id))
    assert ("ERROR", reason) in bench.log(run_id)


def test_markers_direct_references_and_what_is_installed(bench: Bench, packages: Path):
    installed(packages, "wardtools", "1.2")
    direct = "wardtools @ https://example.org/wardtools-7.whl"
    wanted = f'"{direct}", "never; sys_platform == \'win32\'", "numpy>=2"'
    run_id = bench.submit("import wardtools\nprint(wardtools.version)", dependencies=wanted)
    assert bench.launch() == "completed"
    ((_, warned), (_, printed)) = bench.log(run_id)
    assert f"{direct} is installed here, but whether it is from there cannot be checked" in warned
    assert printed == "1.2"


def test_what_cannot_be_read_is_refused_before_it_is_submitted(bench: Bench):
    with pytest.raises(ProjectError, match=r"pyproject.toml: project.dependencies holds 'numpy >>= 2'"):
        bench.submit("pass", dependencies='"numpy >>= 2"')
    assert bench.control.runs() == []


def test_what_is_missing_is_installed(installing: Bench, wheels: Path):
    wheel(wheels, "wardtools", "2.0", requires=["pills"])
    wheel(wheels, "pills", "1.0")
    body = "import pills, wardtools\nprint(wardtools.version, pills.version, wardtools.__file__)"
    for number in range(2):
        run_id = installing.submit(body, dependencies='"wardtools>=2"')
        assert installing.launch() == "completed"
        *told, printed = (text for _, text in installing.log(run_id))
        versions, _, path = printed.rpartition(" ")
        assert versions == "2.0 1.0"
        assert path.startswith(f"{installing.home}/envs/")
        assert len(told) == (0 if number else 2)  # it is installed once
        assert not told or told[0].endswith("installing dependencies: wardtools>=2")
    assert len(list((installing.home / "envs").iterdir())) == 1


def test_what_cannot_be_installed_fails_the_run_with_what_pip_says(installing: Bench, wheels: Path):
    run_id = installing.submit("pass", dependencies='"wardtools>=2"')
    assert installing.launch() == "failed"
    reason, error = failure(installing, run_id)
    what = "ERROR: No matching distribution found for wardtools>=2"
    assert reason == f"the app's dependencies cannot be installed on {HERE}: {what}"
    assert error.splitlines()[1] == "pip said:"
    assert "from versions: none" in error
    assert list((installing.home / "envs").iterdir()) == []
