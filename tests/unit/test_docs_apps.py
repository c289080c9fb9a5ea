"""The apps that README.md and docs/apps.md show in pieces are apps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from flq.apps import Context, Grid, RecordDict
from flq.apps.bundle import DEFAULT_EXCLUDE, DEFAULT_INCLUDE, MAX_DEPTH, MAX_FILES, MAX_PACKED_BYTES, MAX_UNPACKED_BYTES
from flq.apps.checkpoints import Checkpoints
from flq.apps.loader import load_clientapp, load_serverapp
from flq.apps.project import load_project
from flq.apps.runconfig import override_config
from flq.cli.main import main
from tests.grid_double import GridDouble, nodes_of

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "apps.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NODES = (2, 3)


def write_app(page: Path, folder: Path) -> Path:
    """Put the app of a page into `folder`: its project file, and the code that begins with the name of a file."""
    for kind, content in BLOCK.findall(page.read_text(encoding="utf-8")):
        named = re.match(r"# (\S+\.py)\n", content)
        if kind == "toml" and "[project]" in content:
            name = "pyproject.toml"
        elif kind == "python" and named:
            name = named[1]
        else:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def lead(app: Path, monkeypatch: pytest.MonkeyPatch) -> GridDouble:
    """Run the app, with nodes and a Grid in this process."""
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    project = load_project(app)
    door = GridDouble(nodes_of(load_clientapp(app), project.config, NODES), node_ids=NODES, config=project.config)
    grid = Grid(door)
    context = Context(7, 1, {}, RecordDict(), dict(project.config), checkpoints=Checkpoints(grid))
    load_serverapp(app)(grid, context)
    return door


@pytest.mark.parametrize("page", ["README.md", "docs/apps.md"])
def test_nothing_is_wrong_with_the_app(tmp_path: Path, page: str):
    result = CliRunner().invoke(main, ["app", "check", str(write_app(ROOT / page, tmp_path)), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["error"], found["data"]["problems"]) == (0, None, [])


def test_the_app_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    door = lead(write_app(ROOT / "README.md", tmp_path), monkeypatch)
    assert "[array([3., 3., 3., 3.])]" in capsys.readouterr().out
    assert door.metrics[3, "eval_accuracy"] == 0.75


def test_the_app_of_the_reference_does_what_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    door = lead(write_app(REFERENCE, tmp_path), monkeypatch)
    assert capsys.readouterr().out.splitlines()[:2] == ["2 10", "3 10"]
    assert {name for number, name in door.metrics if number == 3} == {"error", "train_loss", "eval_error"}
    # steps of 0.5, 0.25 and a sixth
    assert door.metrics[3, "error"] == pytest.approx(0.5 * 0.75 * 5 / 6)
    assert set(door.artifacts) == {"model.npy"}


def test_the_overrides_of_the_reference_are_possible(tmp_path: Path):
    config = load_project(write_app(REFERENCE, tmp_path)).config
    given = re.findall(r"(?:--run-config|-c) '([^']*)'", REFERENCE.read_text(encoding="utf-8"))
    assert override_config(config, given) == {"num-rounds": 10, "optimizer.lr": 0.1, "greeting": "good evening"}


def test_the_limits_of_the_reference_are_those_of_the_code():
    text = " ".join(REFERENCE.read_text(encoding="utf-8").split())
    limits = (MAX_PACKED_BYTES >> 20, MAX_UNPACKED_BYTES >> 20, f"{MAX_FILES:,}", MAX_DEPTH)
    assert "at most {} MB packed, {} MB unpacked, {} files, and {} levels".format(*limits) in text
    for pattern in (*DEFAULT_INCLUDE, *DEFAULT_EXCLUDE):
        assert pattern in text or pattern in {".*", "*.pyc"}, pattern


def test_the_loop_of_the_reference_commits_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    app = write_app(REFERENCE, tmp_path)
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace("wards.server:app", "wards.loop:app"))
    door = lead(app, monkeypatch)
    assert [(saved.round, saved.metrics) for saved in door.checkpoints] == [
        (number, {"error": 0.5**number}) for number in (1, 2, 3)
    ]
