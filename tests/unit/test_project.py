from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flq.apps.project import load_project, load_run_config_file, override_config, parse_key_values
from flq.errors import ProjectError, RunConfigError
from flq.wire.runs import ConfigValue

GOOD = """
[project]
name = "my-app"
version = "1.2"
dependencies = ["numpy>=2"]

[tool.flq]
federation = "hospitals"

[tool.flq.app]
serverapp = "my_app.server:app"
clientapp = "my_app.client:app"
include = ["data/*.csv"]
exclude = ["notes/"]

[tool.flq.app.config]
num-rounds = 3
lr = 0.1
name = "x"
fast = true
optimizer.beta = 0.9

[tool.flq.app.config.model]
hidden = 64
"""

CONFIG: dict[str, ConfigValue] = {
    "num-rounds": 3,
    "lr": 0.1,
    "name": "x",
    "fast": True,
    "optimizer.beta": 0.9,
    "model.hidden": 64,
}


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


class TestLoad:
    def test_reads_what_concerns_flq(self, tmp_path: Path) -> None:
        found = load_project(project(tmp_path, GOOD))
        assert (found.path, found.name, found.version) == (tmp_path, "my-app", "1.2")
        assert (found.serverapp, found.clientapp) == ("my_app.server:app", "my_app.client:app")
        assert found.config == CONFIG
        assert (found.dependencies, found.include, found.exclude) == (("numpy>=2",), ("data/*.csv",), ("notes/",))
        assert found.flq["federation"] == "hospitals"

    def test_a_small_project_is_enough(self, tmp_path: Path) -> None:
        text = '[project]\nname = "a"\n[tool.flq.app]\nserverapp = "a:server"\nclientapp = "a:client"'
        found = load_project(project(tmp_path, text))
        assert (found.config, found.dependencies, found.include) == ({}, (), ())

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ('name = "my-app"', "", "project.name is missing"),
            ('name = "my-app"', "name = 5", "project.name is 5; it must be text"),
            ('name = "my-app"', 'name = "../x"', "project.name is '../x'"),
            ('serverapp = "my_app.server:app"', "", "tool.flq.app.serverapp is missing"),
            ('serverapp = "my_app.server:app"', 'serverapp = "my_app/server.py"', "must be 'module:object'"),
            ('clientapp = "my_app.client:app"', 'clientapp = "my_app.client:"', "must be 'module:object'"),
            ('include = ["data/*.csv"]', 'include = "data"', "must be a list of texts"),
            ('include = ["data/*.csv"]', "include = [1]", "must be a list of texts"),
            ('include = ["data/*.csv"]', "inclode = []", "tool.flq.app.inclode is unknown"),
            ("fast = true", "fast = [1, 2]", "tool.flq.app.config.fast is [1, 2]; it must be"),
            ("fast = true", "fast = 2024-01-01", "tool.flq.app.config.fast is datetime.date"),
            ("optimizer.beta = 0.9", '"model.hidden" = 3', "config.model.hidden is set twice"),
            ("[tool.flq.app.config]", "[tool.flq.app.confic]", "tool.flq.app.confic is unknown"),
            ("[project]", "[project", "cannot be read"),
        ],
    )
    def test_what_is_wrong_is_named_with_file_and_key(self, tmp_path: Path, old: str, new: str, told: str) -> None:
        assert GOOD.count(old) >= 1
        project(tmp_path, GOOD.replace(old, new, 1))
        with pytest.raises(ProjectError) as caught:
            load_project(tmp_path)
        assert str(caught.value).startswith(str(tmp_path / "pyproject.toml"))
        assert told in str(caught.value)

    def test_a_folder_without_a_project_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ProjectError, match=r"there is no .*pyproject\.toml"):
            load_project(tmp_path)

    def test_bytes_that_are_no_text_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_bytes(b"\xff")
        with pytest.raises(ProjectError, match="cannot be read"):
            load_project(tmp_path)

    def test_a_project_for_something_else_gets_a_hint(self, tmp_path: Path) -> None:
        with pytest.raises(ProjectError, match=r"\[tool\.flq\.app\] is missing") as caught:
            load_project(project(tmp_path, "[project]\nname='a'"))
        assert "add [tool.flq.app]" in str(caught.value.hint)

    def test_a_project_for_flower_without_components_names_what_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ProjectError, match=r"tool\.flwr\.app\.components\.serverapp is missing") as caught:
            load_project(project(tmp_path, "[project]\nname='a'\n[tool.flwr.app]"))
        assert 'serverapp = "a.server:app"' in str(caught.value.hint)

    @pytest.mark.parametrize("text", ["tool = 5", "[tool]\nflq = 5", "project = 5\n[tool.flq]\napp = [1]"])
    def test_tables_that_are_none_are_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ProjectError):
            load_project(project(tmp_path, text))


class TestOverride:
    @pytest.mark.parametrize(
        ("given", "changes"),
        [
            ([], {}),
            (["num-rounds=5"], {"num-rounds": 5}),
            (["num-rounds=5 lr=0.2"], {"num-rounds": 5, "lr": 0.2}),
            (["num-rounds=5", "num-rounds=6"], {"num-rounds": 6}),
            (["lr=1"], {"lr": 1.0}),
            (["lr=1e-3"], {"lr": 0.001}),
            (["fast=false"], {"fast": False}),
            (['name="a b"  lr=2'], {"name": "a b", "lr": 2.0}),
            (["name='a b'"], {"name": "a b"}),
            (["name=/data/x=1"], {"name": "/data/x=1"}),
            (["name=5"], {"name": "5"}),
            (["name=true"], {"name": "true"}),
            (["name=2024-01-01"], {"name": "2024-01-01"}),
            (["name=007"], {"name": "007"}),
            (["name=#5"], {"name": "#5"}),
            (["name="], {"name": ""}),
            (['name=""'], {"name": ""}),
            ([r'name="a\"b\n"'], {"name": 'a"b\n'}),
            (["model.hidden=32 optimizer.beta=0.5"], {"model.hidden": 32, "optimizer.beta": 0.5}),
            (["num-rounds=1_000"], {"num-rounds": 1000}),
            (["\n num-rounds=5\n\tlr=0.5 \n"], {"num-rounds": 5, "lr": 0.5}),
        ],
    )
    def test_values_are_toml_of_the_defaults_type(self, given: list[str], changes: dict[str, Any]) -> None:
        found = override_config(CONFIG, given)
        assert found == {**CONFIG, **changes}
        assert {key: type(value) for key, value in found.items()} == {key: type(CONFIG[key]) for key in CONFIG}
        assert list(found) == list(CONFIG)

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("num-rounds=5.5", "num-rounds is 5.5; it must be an integer"),
            ("num-rounds=true", "num-rounds is true; it must be an integer"),
            ("num-rounds=five", "num-rounds is 'five'; it must be an integer"),
            ('num-rounds="5"', "num-rounds is '5'; it must be an integer"),
            ("num-rounds=5#6", "num-rounds is '5#6'"),
            ("num-rounds=99999999999999999999", "does not fit 64 bits"),
            ("fast=1", "fast is 1; it must be true or false"),
            ("lr=fast", "lr is 'fast'; it must be a number"),
            ("lr=true", "lr is true; it must be a number"),
            ("name=[1]", "name is [1]; it must be"),
            ("name={a=1}", "name is {'a': 1}; it must be"),
            ("num-rouds=5", "there is no 'num-rouds' in the project's configuration; the nearest is 'num-rounds'"),
            ("hidden=5", "the nearest is 'model.hidden'"),
            ("num-rounds", "'num-rounds' is no key=value"),
            ("=5", "is no key=value"),
            ("num-rounds = 5", "is no key=value"),
            ('name="a', "is no key=value"),
            ('name="a"b', "is no key=value"),
            (r'name="\q"', "the value of name is no text"),
            ("lr=0.1 garbage", "'garbage' is no key=value"),
        ],
    )
    def test_what_is_wrong_is_named(self, given: str, told: str) -> None:
        with pytest.raises(RunConfigError) as caught:
            override_config(CONFIG, [given])
        assert told in str(caught.value)

    def test_known_keys_are_told(self) -> None:
        with pytest.raises(RunConfigError) as caught:
            override_config({"b": 1, "a": 2}, ["c=1"])
        assert caught.value.hint == "known keys: a, b"
        with pytest.raises(RunConfigError, match=r"no \[tool\.flq\.app\.config\]"):
            override_config({}, ["c=1"])

    def test_a_file_may_hold_the_values(self, tmp_path: Path) -> None:
        file = tmp_path / "fast.toml"
        file.write_text("num-rounds = 9\n[model]\nhidden = 8\n")
        found = override_config(CONFIG, [str(file), "lr=3"])
        assert found == {**CONFIG, "num-rounds": 9, "model.hidden": 8, "lr": 3.0}
        assert load_run_config_file(file) == {"num-rounds": 9, "model.hidden": 8}
        file.write_text("num-rounds = '9'")
        with pytest.raises(RunConfigError, match="must be an integer"):
            override_config(CONFIG, [str(file)])
        file.write_text("name = [1]")
        with pytest.raises(RunConfigError, match=r"fast\.toml: name is \[1\]"):
            load_run_config_file(file)
        with pytest.raises(RunConfigError, match="cannot be read"):
            override_config(CONFIG, [str(tmp_path / "other.toml")])

    @given(st.text(max_size=30))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            found = parse_key_values(text)
        except RunConfigError:
            return
        assert all(isinstance(value, bool | int | float | str) for value in found.values())

    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20))
    def test_any_text_can_be_quoted(self, text: str) -> None:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        assert override_config(CONFIG, [f'name="{quoted}" lr=2']) == {**CONFIG, "name": text, "lr": 2.0}


def test_key_values_without_defaults_take_the_type_that_is_written() -> None:
    text = "partition-id=3 rate=0.5 gpu=true path=/data 'x'=1"
    with pytest.raises(RunConfigError, match="no key=value"):
        parse_key_values(text)
    assert parse_key_values('partition-id=3 rate=0.5 gpu=true path=/data site="a b" "odd key"=1') == {
        "partition-id": 3,
        "rate": 0.5,
        "gpu": True,
        "path": "/data",
        "site": "a b",
        "odd key": 1,
    }
    assert parse_key_values("") == {}


class TestDependencies:
    def needing(self, folder: Path, *requirements: str) -> tuple[str, ...]:
        return load_project(project(folder, GOOD.replace('["numpy>=2"]', str(list(requirements))))).dependencies

    def test_requirements_stand_as_they_are_written(self, tmp_path: Path) -> None:
        wanted = ("numpy >= 2", "a[b]; python_version > '3'", "c @ https://example.org/c.whl")
        assert self.needing(tmp_path, *wanted) == wanted

    def test_what_is_no_requirement_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ProjectError, match="'numpy >>= 2', which is no requirement"):
            self.needing(tmp_path, "numpy >>= 2")
