"""Replies that cannot be used: left out with their node and the reason; a round without any other ends the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.flq_command import Flq
from tests.acceptance.make_app import CLIENT, make_app
from tests.acceptance.mistakes import OUR_FRAME, failed_run

pytestmark = pytest.mark.acceptance

EXAMPLES = '"num-examples": 1'


def spoilt(statement: str, *, on: str = "True", examples: str = EXAMPLES, loss: str = "0.5") -> str:
    """A client that trains, and then spoils its `weights` on the partitions `p` that `on` holds for."""
    trained = f"weights[0] += 1\n        p = context.node_config['partition-id']\n        if {on}: {statement}"
    code = CLIENT.replace("weights[0] += 1", trained)
    return code.replace(f'{EXAMPLES}, "loss": 0.5', f'{examples}, "loss": {loss}')


BAD = [
    ("nan", "weights[0][1] = float('nan')", EXAMPLES, "its array '0' has NaN or infinite values"),
    ("infinite", "weights[0][1] = float('inf')", EXAMPLES, "its array '0' has NaN or infinite values"),
    ("shape", "weights[0] = weights[0][:2]", EXAMPLES, "it has '0' float64 (2,) for '0' float64 (4,)"),
    ("dtype", "weights[0] = weights[0].astype('float32')", EXAMPLES, "it has '0' float32 (4,) for '0' float64 (4,)"),
    ("keys", "weights.append(weights[0])", EXAMPLES, "it has '1' float64 (4,) for nothing"),
    (
        "object", "weights[0] = weights[0].astype(object)", EXAMPLES,
        "error 2: ClientApp raised TypeError: array '0': arrays of dtype object cannot travel",
    ),
    ("zero", "pass", '"num-examples": int(p != 1)', "its 'num-examples' is 0; a weight is a positive number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "statement", "examples", "reason"), BAD, ids=[case[0] for case in BAD])
def test_one_bad_reply_is_left_out_and_the_others_count(
    flq: Flq, tmp_path: Path, *, name: str, statement: str, examples: str, reason: str
):
    app = make_app(tmp_path, client=spoilt(statement, on="p == 1", examples=examples))
    done = flq.ended("run", app, "--stream", "--name", f"one-{name}", "--run-config", "num-rounds=1")
    out, err = done.stdout, done.stderr
    assert done.returncode == 0, out + err
    assert out.splitlines()[-1] == "sum 4.0"  # the mean of the three others
    (told,) = [line for line in err.splitlines() if "is not used" in line]
    assert told.startswith("flq.app: the reply of node-2 is not used: ")
    assert reason in told
    assert not OUR_FRAME.search(err)


@pytest.mark.parametrize(
    ("name", "statement", "examples", "reason"),
    [
        ("all-nan", "weights[0][1] = float('nan')", EXAMPLES, "its array '0' has NaN or infinite values"),
        ("all-object", "weights[0] = weights[0].astype(object)", EXAMPLES, "arrays of dtype object cannot travel"),
        ("all-zero", "pass", '"num-examples": 0', "its 'num-examples' is 0; a weight is a positive number"),
        ("all-unweighted", "pass", '"examples": 1', "its metrics have no 'num-examples', which it is weighted by"),
    ],
)
def test_a_round_of_bad_replies_ends_the_run_with_one_reason(
    flq: Flq, tmp_path: Path, *, name: str, statement: str, examples: str, reason: str
):
    failed = failed_run(flq, make_app(tmp_path, client=spoilt(statement, examples=examples)), name)
    assert "none of 4 replies can be used: node-1, node-2, node-3 and 1 more: " in failed.reason
    assert failed.reason.count(reason) == 1
    assert failed.err.count("is not used: ") == 1
    assert "nor are those of node-2, node-3, node-4, for the same reason" in failed.err


def test_a_metric_that_is_no_number_any_more_is_shown_as_such(flq: Flq, tmp_path: Path):
    """A training that diverges has a loss of NaN, which JSON does not know."""
    app = make_app(tmp_path, client=spoilt("pass", loss="float('nan') if p == 1 else float('inf')"))
    done = flq.ended("run", app, "--stream", "--name", "diverges")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_loss nan" in done.stderr
    assert "train_loss" in flq("show", "diverges")
    rounds = flq.json("show", "diverges")["rounds"]
    assert [found["metrics"]["train_loss"] for found in rounds] == ["nan", "nan"]
