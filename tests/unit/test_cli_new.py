from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flq.apps import Context, Grid, RecordDict
from flq.apps.loader import load_clientapp, load_serverapp
from flq.apps.project import load_project
from flq.cli.main import main
from flq.cli.new import NAMES, TEMPLATES
from tests.grid_double import GridDouble, nodes_of

Invoke = Callable[..., Result]
NODES = (2, 3, 4)

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
RUNNABLE = [pytest.param(name, marks=needs_torch) if name == "torch" else name for name in NAMES]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, arguments)


def test_all_templates_are_offered():
    assert {path.name for path in TEMPLATES.iterdir()} == set(NAMES)


@pytest.mark.parametrize("template", NAMES)
def test_the_project_has_the_given_name_everywhere(invoke: Invoke, template: str):
    result = invoke("new", "Fraud.In-2", "--template", template)
    assert (result.exit_code, result.stdout) == (0, "Fraud.In-2\n")
    assert "flq run Fraud.In-2 --stream" in result.stderr
    project = load_project(Path("Fraud.In-2"))
    assert project.name == "Fraud.In-2"
    assert (project.serverapp, project.clientapp) == ("fraud_in_2.server:app", "fraud_in_2.client:app")
    assert {"num-rounds", "learning-rate", "fraction-train", "seed"} <= set(project.config)
    files = [path for path in Path("Fraud.In-2").rglob("*") if path.is_file()]
    text = "\n".join(path.read_text() for path in files)
    assert f"{template}_app" not in text
    assert f"{template}-app" not in text
    assert "# Fraud.In-2: " in text


@pytest.mark.parametrize("template", NAMES)
def test_the_comments_say_what_is_what(template: str):
    files = [*TEMPLATES.glob(f"{template}/**/*.py"), *TEMPLATES.glob(f"{template}/*.toml")]
    text = "\n".join(path.read_text() for path in files)
    for word in ("ServerApp", "ClientApp", "message", "record", "context.node_config", "context.run_config"):
        assert re.search(rf"#.*{re.escape(word)}", text), f"no comment of the template speaks of {word}"


@pytest.mark.parametrize("template", RUNNABLE)
def test_the_app_learns(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, template: str):
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    name = f"learns_with_{template}"
    assert invoke("new", name, "--template", template).exit_code == 0
    project = load_project(Path(name).absolute())
    answer = nodes_of(load_clientapp(project.path), project.config, NODES)
    door = GridDouble(answer, node_ids=NODES, config=project.config)
    context = Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=dict(project.config))
    load_serverapp(project.path)(Grid(door), context)
    rounds = project.config["num-rounds"]
    assert isinstance(rounds, int)
    before, after = door.metrics[0, "accuracy"], door.metrics[rounds, "accuracy"]
    assert after > before + 0.25
    assert door.metrics[rounds, "loss"] < door.metrics[1, "loss"] < door.metrics[0, "loss"]
    assert {name for number, name in door.metrics if number == rounds} == {
        *("loss", "accuracy"),
        *("train_loss", "train_accuracy", "eval_loss", "eval_accuracy"),
    }
    assert len(door.artifacts) == 1


@pytest.mark.parametrize("template", NAMES)
def test_the_app_passes_its_check_as_far_as_it_can_be_checked_here(invoke: Invoke, template: str):
    invoke("new", "mine", "--template", template)
    result = invoke("app", "check", "mine", "--json")
    found = json.loads(result.stdout)["data"]
    names = {file["name"] for file in found["bundle"]["files"]}
    modules = ("__init__", "client", "data", "model", "server")
    assert names == {"README.md", "pyproject.toml", *(f"mine/{module}.py" for module in modules)}
    if template == "torch" and find_spec("torch") is None:
        assert result.exit_code == 1
        assert [problem["message"][:21] for problem in found["problems"]] == ["the app needs torch>="]
        return
    assert (result.exit_code, found["problems"]) == (0, [])
    assert [entry["provides"] for entry in found["entry_points"]] == [["main"], ["evaluate", "train"]]


def test_what_is_missing_here_is_told(invoke: Invoke, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flq.apps.deps.installed_version", lambda name: None if name == "torch" else "999")
    result = invoke("new", "mine", "--template", "torch")
    assert result.exit_code == 0
    assert "it needs torch>=2.2, which is not installed here" in result.stderr
    assert "pip install 'torch>=2.2'" in result.stderr


def test_json(invoke: Invoke):
    data = json.loads(invoke("new", "apps/mine", "--json").stdout)["data"]
    assert (data["name"], data["package"], data["path"], data["template"]) == ("mine", "mine", "apps/mine", "numpy")
    assert {path.relative_to("apps/mine").as_posix() for path in Path("apps/mine").rglob("*") if path.is_file()} == set(
        data["files"]
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("3d", "which Python cannot import"),
        ("class", "which Python cannot import"),
        ("a b", "no name for an app"),
        ("größe", "no name for an app"),
        (".", "no name for an app"),
        ("..", "no name for an app"),
        ("-x-", "No such option"),
        ("test", "left out of bundles"),
        ("dist", "left out of bundles"),
        ("numpy", "hide the module 'numpy'"),
        ("torch", "hide the module 'torch'"),
        ("flq", "hide the module 'flq'"),
        ("random", "hide the module 'random'"),
        ("Click", "hide the module 'click'"),
    ],
)
def test_names_that_would_not_work_are_refused(invoke: Invoke, tmp_path: Path, name: str, told: str):
    result = invoke("new", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "hint: " in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_another_is_left_alone(invoke: Invoke, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert invoke("new", "empty").exit_code == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "full", "file", "link"):
        result = invoke("new", name)
        assert result.exit_code == 1
        assert f"{name} exists already" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file", "full", "link"}
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_nothing_is_left_half_written(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []

    def write(path: Path, *_: object, **__: object) -> None:
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path.name)

    monkeypatch.setattr(Path, "write_text", write)
    result = invoke("new", "mine")
    assert result.exit_code == 1
    assert "mine cannot be made: No space left on device" in result.stderr
    assert not list(tmp_path.iterdir())
