"""Options of a SuperNode and its file of per-node configuration."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from flq.cli.main import main
from flq.errors import UsageError
from flq.node.options import load_node_config_file, node_specs, parse_size, shown_size
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
        ({"memory_bytes": 1000}, "1000 bytes are too little"),
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


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5 GiB", 3 << 29), ("512mb", 512 * 10**6), ("64K", 64_000), ("1000000", 10**6)],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 GB RAM", "-1GB", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_sizes_are_shown():
    assert [shown_size(size) for size in (4 * 10**9, 3 << 29, 512 * 10**6, 5)] == [
        "4 GB",
        "1.61 GB",
        "512 MB",
        "5 bytes",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--gpus", "cuda:0"], "'cuda:0' is no GPU"),
        (["--memory", "plenty"], "'plenty' is no size"),
        (["--drain", "-1"], "'--drain'"),
    ],
)
def test_the_command_refuses_what_cannot_be(tmp_path, arguments, text):
    result = CliRunner(env={"FLQ_DSN": "host=nowhere"}).invoke(
        main, ["supernode", "--name", "ward", "--home", str(tmp_path), *arguments]
    )
    assert result.exit_code == 2
    assert text in result.stderr
