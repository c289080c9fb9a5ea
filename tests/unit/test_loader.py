from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flq.apps import ClientApp, ServerApp
from flq.apps.loader import app_frames, load_clientapp, load_serverapp
from flq.errors import AppLoadError, ProjectError

NAMES = (f"loaded_app_{number}" for number in itertools.count())
SERVER = "from flq.apps import ServerApp\napp = ServerApp()\nother = 5\n"
CLIENT = "from flq.apps import ClientApp\napp = ClientApp()\n"

Make = Callable[..., tuple[Path, str]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a project with a package of a name of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def project(
        server: str = SERVER, client: str = CLIENT, component: str = "{name}.server:app", below: str = ""
    ) -> tuple[Path, str]:
        name = next(NAMES)
        package = tmp_path / name / below / name
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "server.py").write_text(server)
        (package / "client.py").write_text(client)
        serverapp = component.format(name=name)
        (tmp_path / name / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\n[tool.flq.app]\nserverapp = "{serverapp}"\nclientapp = "{name}.client:app"\n'
        )
        return tmp_path / name, name

    return project


@pytest.mark.parametrize("below", ["", "src"])
def test_loads_both_apps(make: Make, below: str) -> None:
    folder, name = make(below=below)
    assert isinstance(load_serverapp(folder), ServerApp)
    assert isinstance(load_clientapp(folder), ClientApp)
    assert sys.modules[f"{name}.server"].__file__ == str(folder / below / name / "server.py")


def test_an_error_at_import_is_told_in_the_first_line_and_with_the_names_of_the_project(make: Make) -> None:
    folder, name = make(server="x = {}['here']")
    with pytest.raises(AppLoadError) as caught:
        load_serverapp(folder)
    first, *rest = caught.value.message.splitlines()
    assert first == f"importing {name}.server failed: KeyError: 'here'"
    assert f'  File "{name}/server.py", line 1, in <module>' in rest
    assert str(folder) not in caught.value.message


def test_a_syntax_error_has_the_name_of_the_project_s_file(make: Make) -> None:
    folder, name = make(server="def x(:")
    with pytest.raises(AppLoadError) as caught:
        load_serverapp(folder)
    assert f'  File "{name}/server.py", line 1' in caught.value.message.splitlines()


def test_the_apps_folder_goes_first_and_stands_there_once(make: Make) -> None:
    folder, _ = make()
    load_serverapp(folder)
    load_clientapp(folder)
    assert sys.path[0] == str(folder)
    assert sys.path.count(str(folder)) == 1


def test_an_attribute_of_an_attribute_can_be_named(make: Make) -> None:
    folder, _ = make(
        server="from flq.apps import ServerApp\nclass Apps:\n    main = ServerApp()\n",
        component="{name}.server:Apps.main",
    )
    assert isinstance(load_serverapp(folder), ServerApp)


@pytest.mark.parametrize(
    ("component", "told"),
    [
        ("{name}.absent:app", r"no module loaded_app_\d+\.absent"),
        ("absent_package_xyz.server:app", r"no module absent_package_xyz\.server"),
        ("{name}.server:absent", "has no 'absent'"),
        ("{name}.server:app.absent", r"has no 'app\.absent'"),
        ("{name}.server:other", "is no ServerApp but of type int"),
        ("{name}.server:ServerApp", "is no ServerApp but the class ServerApp"),
        ("{name}.client:app", "is no ServerApp but of type ClientApp"),
    ],
)
def test_what_is_not_there_is_named(make: Make, component: str, told: str) -> None:
    folder, _ = make(component=component)
    with pytest.raises(AppLoadError, match=told):
        load_serverapp(folder)


def test_a_module_that_the_app_needs_is_named_with_a_hint(make: Make) -> None:
    folder, _ = make(server="import absent_package_xyz\n" + SERVER)
    with pytest.raises(AppLoadError, match="needs the module absent_package_xyz") as caught:
        load_serverapp(folder)
    assert "dependencies" in str(caught.value.hint)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("from flq.apps import Absent\n", "ImportError: cannot import name 'Absent'"),
        ("raise BaseException('odd')\n", None),
    ],
)
def test_an_import_that_fails_shows_the_apps_own_lines(make: Make, server: str, told: str | None) -> None:
    folder, _ = make(server=server)
    if told is None:
        with pytest.raises(BaseException, match="odd"):
            load_serverapp(folder)
        return
    with pytest.raises(AppLoadError, match=told) as caught:
        load_serverapp(folder)
    assert caught.value.__cause__ is not None
    assert "importlib" not in str(caught.value)
    assert "server.py" in str(caught.value)


def test_a_folder_without_a_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectError):
        load_clientapp(tmp_path)


class TestFrames:
    def raised(self, make: Make, body: str) -> tuple[BaseException, Path]:
        folder, name = make(server=SERVER + body)
        load_serverapp(folder)
        try:
            sys.modules[f"{name}.server"].run()
        except Exception as exc:  # noqa: BLE001 - the app's
            return exc, folder
        raise AssertionError

    def test_only_the_apps_own_frames_are_shown(self, make: Make) -> None:
        exc, folder = self.raised(
            make, "import json\ndef run():\n    inner()\n\ndef inner():\n    json.loads('{')  # here\n"
        )
        told = app_frames(exc, folder)
        assert told.startswith("Traceback (most recent call last):")
        assert told.count('server.py"') == 2
        assert "json.loads('{')  # here" in told
        assert "decoder.py" not in told
        assert "test_loader.py" not in told
        assert told.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting property name")

    def test_causes_are_shown_in_the_same_way(self, make: Make) -> None:
        body = (
            "import json\ndef run():\n    try:\n        json.loads('{')\n    except ValueError as exc:\n"
            "        raise RuntimeError('no good') from exc\n"
        )
        exc, folder = self.raised(make, body)
        told = app_frames(exc, folder)
        assert "JSONDecodeError" in told
        assert "direct cause" in told
        assert told.endswith("RuntimeError: no good")
        assert "decoder.py" not in told

    def test_groups_and_endless_recursion_end(self, make: Make) -> None:
        exc, folder = self.raised(make, "def run():\n    raise ExceptionGroup('all', [ValueError('one')])\n")
        assert "ValueError: one" in app_frames(exc, folder)
        exc, folder = self.raised(make, "def run():\n    run()\n")
        told = app_frames(exc, folder)
        assert "RecursionError" in told
        assert len(told) < 5000

    def test_an_error_without_frames_of_the_app_still_says_what_it_is(self, tmp_path: Path) -> None:
        assert app_frames(ValueError("bare"), tmp_path) == "ValueError: bare"
