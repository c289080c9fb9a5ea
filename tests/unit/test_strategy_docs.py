"""docs/strategies.md tells of every strategy and every parameter, with its default and its paper."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import flq.apps.mods
import flq.apps.strategy
from flq.apps.strategy import FedAvg, FedOpt, Strategy
from flq.apps.strategy.options import RoundOptions

TEXT = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
ROWS = {
    name: [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in TEXT.splitlines()
    for name in re.findall(r"^\| `(\w+)[`(]", line)
}
CLASSES: dict[str, Any] = {
    name: found
    for name in flq.apps.strategy.__all__
    if inspect.isclass(found := getattr(flq.apps.strategy, name))
    and issubclass(found, Strategy)
    and found not in {Strategy, FedOpt}
}
BEYOND = set(RoundOptions.__annotations__)
COMMON = {name: parameter for name, parameter in inspect.signature(FedAvg).parameters.items() if name not in BEYOND}


def own(strategy: Any) -> list[inspect.Parameter]:
    """The parameters that a strategy has beside those of all."""
    return [
        parameter
        for name, parameter in inspect.signature(strategy).parameters.items()
        if name not in COMMON and name not in BEYOND and name not in {"options", "strategy"}
    ]


def spelled(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return f"`{parameter.name}`"
    default = f'"{parameter.default}"' if isinstance(parameter.default, str) else str(parameter.default)
    return f"`{parameter.name}={default}`"


@pytest.mark.parametrize("name", CLASSES)
def test_every_strategy_has_a_row_with_its_parameters_and_its_paper(name: str) -> None:
    row = " | ".join(ROWS[name])
    if "the same" not in ROWS[name][-1]:
        for parameter in own(CLASSES[name]):
            assert spelled(parameter) in row
        assert len(re.findall(r"`\w+=", row)) == sum(
            parameter.default is not inspect.Parameter.empty for parameter in own(CLASSES[name])
        )
    (paper,) = re.findall(r"\((https://[^)]*)\)", row)
    assert paper in inspect.getdoc(CLASSES[name])  # type: ignore[operator]


def test_no_row_is_of_something_that_is_not_there() -> None:
    described = {name for name in ROWS if name[0].isupper()} - {"LocalDpMod"}
    assert described == set(CLASSES)


def test_common_parameters_and_those_beyond_flower_are_told_with_their_defaults() -> None:
    for name, parameter in inspect.signature(FedAvg).parameters.items():
        row = next(line for line in TEXT.splitlines() if line.startswith("|") and f"`{name}`" in line.split(" | ")[0])
        default = f'"{parameter.default}"' if isinstance(parameter.default, str) else str(parameter.default)
        assert f"| `{default}` |" in row, name


@pytest.mark.parametrize("name", [name for name in CLASSES if not name.startswith("Differential")])
def test_every_strategy_takes_the_common_parameters_and_those_beyond_flower(name: str) -> None:
    parameters = inspect.signature(CLASSES[name]).parameters
    missing = COMMON.keys() - parameters.keys()
    assert missing == ({"min_train_nodes", "min_evaluate_nodes"} if name == "FedXgbCyclic" else set())
    assert {key: parameters[key].default for key in COMMON if key in parameters} == {
        key: COMMON[key].default for key in COMMON if key in parameters
    }
    given: dict[str, Any] = {
        "round_deadline": 5.0,
        "min_replies": 3,
        "over_select": 0.5,
        "node_labels": {"site": "east"},
        "selection_seed": 7,
        "float64_accumulator": True,
        "threads": 2,
    }
    assert given.keys() == BEYOND
    required: dict[str, Any] = {"client_learning_rate": 0.1} if name == "QFedAvg" else {}
    strategy = CLASSES[name](**required, **given)
    assert {key: getattr(strategy, key) for key in given} == given


def test_every_mod_has_a_row() -> None:
    mods = [name for name in flq.apps.mods.__all__ if name.endswith(("_mod", "Mod")) and name != "Mod"]
    assert mods
    assert all(name in ROWS for name in mods)


def test_the_example_works() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    found: dict[str, Any] = {}
    exec(example, found)  # noqa: S102 - the page's own code
    assert found["strategy"].privacy_spent().epsilon == 0
