"""Options of a SuperNode and its file of per-node configuration."""

from __future__ import annotations

import pytest

from flq.errors import UsageError
from flq.node.options import load_node_config_file, node_specs
from tests.node_app import node_options


def test_one_node_has_the_name_itself(tmp_path):
    (spec,) = node_specs(node_options(tmp_path, name="ward", labels={"gpu": "yes"}))
    assert (spec.name, dict(spec.config)) == ("ward", {"partition-id": 0, "num-partitions": 1})
    assert spec.labels == {"gpu": "yes"}


def test_many_nodes_are_numbered_from_one_and_partitioned_from_zero(tmp_path):
    specs = node_specs(node_options(tmp_path, nodes=3, node_config={"a": 1}, per_node_config={"node-2": {"a": 2}}))
    assert [spec.name for spec in specs] == ["node-1", "node-2", "node-3"]
    assert [spec.config["partition-id"] for spec in specs] == [0, 1, 2]
    assert [spec.config["a"] for spec in specs] == [1, 2, 1]
    assert {spec.config["num-partitions"] for spec in specs} == {3}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"nodes": 0}, "at least one node"),
        ({"slots": 0}, "at least one slot"),
        ({"name": "../up"}, "no name for a node"),
        ({"nodes": 2, "per_node_config": {"node-3": {}}}, "not hosted here: node-3"),
    ],
)
def test_options_that_cannot_be(tmp_path, changes, text):
    with pytest.raises(UsageError, match=text):
        node_specs(node_options(tmp_path, **changes))


def test_a_file_of_node_configuration(tmp_path):
    file = tmp_path / "nodes.toml"
    file.write_text('[node-1]\ndata = "/a"\nbatch.size = 32\n[node-2]\nfast = true\nrate = 0.5\n')
    assert load_node_config_file(file) == {
        "node-1": {"data": "/a", "batch.size": 32},
        "node-2": {"fast": True, "rate": 0.5},
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[node-1", "cannot be read"),
        ("data = 1", "'data' is a value"),
        ("[node-1]\na.b = [1]", "a.b of node 'node-1' is a list"),
        ("[node-1]\na = 2020-01-01", "is a date"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, content, text):
    file = tmp_path / "nodes.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        load_node_config_file(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        load_node_config_file(tmp_path / "nodes.toml")
