"""The example `digits`, loaded from its bundle and run in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flq.apps import Context, Grid, RecordDict
from flq.apps.bundle import pack, unpack
from flq.apps.loader import load_clientapp, load_serverapp
from flq.apps.project import Project, load_project
from flq.errors import AttemptFenced
from flq.wire.grid import Checkpoint
from tests.grid_double import GridDouble, nodes_of

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
NODES = tuple(range(2, 12))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    packed = pack(load_project(DIGITS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", list(__import__("sys").path))
        folder = unpack(packed.data, packed.hash, tmp_path_factory.mktemp("apps"))
        load_serverapp(folder)
        yield load_project(folder)


def door_to_ten_nodes(project: Project) -> GridDouble:
    answer = nodes_of(load_clientapp(project.path), project.config, NODES)
    return GridDouble(answer, node_ids=NODES, newest_first=True, config=project.config)


def lead(project: Project, door: GridDouble) -> None:
    context = Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config=dict(project.config))
    load_serverapp(project.path)(Grid(door), context)


@pytest.fixture(scope="module")
def finished(project: Project) -> tuple[GridDouble, str]:
    door = door_to_ten_nodes(project)
    with pytest.MonkeyPatch.context() as patch:
        printed = io.StringIO()
        patch.setattr("sys.stdout", printed)
        lead(project, door)
    return door, printed.getvalue()


def test_ten_nodes_recognise_the_held_out_images_after_ten_rounds(finished: tuple[GridDouble, str]) -> None:
    door, printed = finished
    last = printed.splitlines()[-1]
    assert last.startswith("accuracy=0.")
    assert float(last.removeprefix("accuracy=")) >= 0.95
    assert f"{door.metrics[10, 'accuracy']:.4f}" == last.removeprefix("accuracy=")


def test_the_history_has_the_metrics_of_each_source(finished: tuple[GridDouble, str]) -> None:
    door, _ = finished
    names = {name for number, name in door.metrics if number == 10}
    assert names == {"loss", "accuracy", "train_loss", "eval_loss", "eval_accuracy"}
    assert door.checkpoints[-1].metrics == {name: door.metrics[10, name] for name in names}
    assert {name for number, name in door.metrics if number == 0} == {"loss", "accuracy"}
    assert door.metrics[10, "loss"] < door.metrics[1, "loss"] < door.metrics[0, "loss"]
    assert door.planned == [10]


def test_the_model_is_an_artifact(finished: tuple[GridDouble, str]) -> None:
    door, _ = finished
    with np.load(io.BytesIO(door.stored[door.artifacts["model.npz"]])) as arrays:
        shapes = {name: (arrays[name].shape, arrays[name].dtype) for name in arrays}
    f32 = np.dtype(np.float32)
    assert shapes == {"w1": ((64, 64), f32), "b1": ((64,), f32), "w2": ((64, 10), f32), "b2": ((10,), f32)}


def test_a_run_that_is_interrupted_ends_with_the_same_model(
    project: Project, finished: tuple[GridDouble, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = finished
    door = door_to_ten_nodes(project)
    with monkeypatch.context() as patch:
        commits: list[Checkpoint] = []

        def commit(checkpoint: Checkpoint) -> None:
            if len(commits) == 4:
                raise AttemptFenced
            commits.append(checkpoint)
            GridDouble.commit_round(door, checkpoint)

        patch.setattr(door, "commit_round", commit)
        with pytest.raises(AttemptFenced):
            lead(project, door)
    assert [saved.round for saved in door.checkpoints] == [0, 1, 2, 3]
    trained = door.calls["push"]
    lead(project, door)
    assert len(door.pushes) == len(undisturbed.pushes) < door.calls["push"]  # round 4 was replayed, not trained again
    assert door.calls["push"] == trained + 14
    assert door.artifacts == undisturbed.artifacts


def test_partitions_are_disjoint_complete_skewed_and_the_same_every_time(project: Project) -> None:
    load_serverapp(project.path)
    from digits import data  # type: ignore[import-not-found]

    images, labels = data.load()
    parts = [data.partition(index, 10, alpha=0.5, seed=42) for index in range(10)]
    test_images, test_labels = data.held_out(42)
    assert len(labels) == 1797 == sum(len(part) for _, part in parts) + len(test_labels)
    assert abs(len(test_labels) - 1797 / 5) <= 5
    everything = np.concatenate([test_images, *(part for part, _ in parts)])
    assert sorted(map(bytes, everything)) == sorted(map(bytes, images))
    counts = np.array([np.bincount(part, minlength=10) for _, part in parts])
    assert counts.sum(axis=1).min() >= data.FEWEST
    assert counts.std(axis=0).min() > 5  # every digit is spread unevenly
    assert np.bincount(test_labels).min() >= 34  # stratified
    again = data.partition(3, 10, alpha=0.5, seed=42)
    assert np.array_equal(again[0], parts[3][0])
    assert not np.array_equal(data.partition(3, 10, alpha=0.5, seed=43)[1], parts[3][1])


@pytest.mark.parametrize("count", [1, 2, 100, 300])
def test_every_node_gets_some_images(project: Project, count: int) -> None:
    load_serverapp(project.path)
    from digits import data

    sizes = [len(data.partition(index, count, alpha=0.5, seed=42)[1]) for index in range(count)]
    assert min(sizes) >= min(data.FEWEST, 1400 // count)
