"""What a SuperNode is started with, and the names and configurations of the nodes that it hosts."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flq.errors import UsageError
from flq.wire.fleet import NodeSpec
from flq.wire.runs import ConfigValue

Isolation = Literal["run", "task"]
"""`run`: a warm worker process serves all tasks of its run. `task`: every task gets a fresh process."""

LEAST_MEMORY = 128 << 20
"""A worker with numpy and nothing else needs half of that."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuperNodeOptions:
    """How a SuperNode works.

    `nodes` counts the nodes that this process hosts: with one its name is `name`, with N they are `name-1` to
    `name-N`. `slots` bounds how many ClientApps compute at once. `node_config` holds for every hosted node,
    `per_node_config` for the one whose name is the key. `cache` is a folder of this SuperNode's own, for bundles,
    objects and client state; objects in it are kept up to `cache_bytes`. `environments` is the folder in which workers
    may install what apps depend on; None if they may not. `gpus` are the devices that they share; None leaves them the
    CUDA_VISIBLE_DEVICES of this process. `memory_bytes` bounds the memory of each worker process. A worker that has had
    nothing to do for `idle_seconds` ends. At SIGTERM, running tasks get `drain_seconds` to finish.
    """

    name: str
    nodes: int = 1
    slots: int
    node_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    per_node_config: Mapping[str, Mapping[str, ConfigValue]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    isolation: Isolation = "run"
    cache: Path
    cache_bytes: int = 4 << 30
    environments: Path | None = None
    gpus: tuple[str, ...] | None = None
    memory_bytes: int | None = None
    idle_seconds: float = 60.0
    drain_seconds: float = 30.0


def node_names(options: SuperNodeOptions) -> list[str]:
    """The names of the hosted nodes."""
    if options.nodes == 1:
        return [options.name]
    return [f"{options.name}-{number}" for number in range(1, options.nodes + 1)]


def node_specs(options: SuperNodeOptions) -> list[NodeSpec]:
    """The hosted nodes, each with its share of the configuration. Raises `UsageError` on options that cannot be.

    Every node gets a `partition-id` (from 0) and `num-partitions`, unless the configuration sets them itself.
    """
    _check(options)
    names = node_names(options)
    return [
        NodeSpec(
            name=name,
            config={
                "partition-id": index,
                "num-partitions": len(names),
                **options.node_config,
                **options.per_node_config.get(name, {}),
            },
            labels=dict(options.labels),
        )
        for index, name in enumerate(names)
    ]


def load_node_config_file(path: Path) -> Mapping[str, Mapping[str, ConfigValue]]:
    """Read per-node configuration: a TOML file with one table per node, keyed by the node's name.

        [hospital-1]
        data = "/data/ward-a"
        batch.size = 32             # handed to apps as "batch.size"

    Raises `UsageError` that names the file, the node and the key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise UsageError(f"the node configuration {path} cannot be read: {exc}") from exc
    return {node: _node_table(path, node, table) for node, table in content.items()}


def _node_table(path: Path, node: str, table: object) -> dict[str, ConfigValue]:
    if not isinstance(table, dict):
        raise UsageError(
            f"{path}: {node!r} is a value, not a node's table",
            hint=f'write its keys below a header: [{node}], then for example data = "/path"',
        )
    return dict(_flat(path, node, table, prefix=""))


def _flat(path: Path, node: str, table: Mapping[str, Any], *, prefix: str) -> list[tuple[str, ConfigValue]]:
    found: list[tuple[str, ConfigValue]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _flat(path, node, value, prefix=f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found.append((prefix + key, value))
        else:
            raise UsageError(
                f"{path}: {prefix}{key} of node {node!r} is a {type(value).__name__}",
                hint="node configuration holds numbers, strings, true and false",
            )
    return found


def parse_size(text: str) -> int:
    """The bytes of `4GB`, `512 MiB` or `4000000000`. Raises `UsageError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no size", hint="a number with a unit, such as 512MB or 4GB")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


def shown_size(size: int) -> str:
    """A size for people: `4 GB`."""
    for unit, name in ((1000**3, "GB"), (1000**2, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def _check(options: SuperNodeOptions) -> None:
    if not _NAME.fullmatch(options.name):
        raise UsageError(
            f"{options.name!r} is no name for a node", hint="letters, digits, '.', '_' and '-', at most 128 of them"
        )
    if options.nodes < 1:
        raise UsageError(f"a SuperNode hosts at least one node, not {options.nodes}")
    if options.slots < 1:
        raise UsageError(f"a SuperNode needs at least one slot, not {options.slots}")
    _check_memory(options.memory_bytes)
    strangers = sorted(set(options.per_node_config) - set(node_names(options)))
    if strangers:
        names = node_names(options)
        known = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        raise UsageError(
            f"the node configuration names nodes that are not hosted here: {', '.join(strangers)}",
            hint=f"this SuperNode hosts {known}",
        )


def _check_memory(limit: int | None) -> None:
    if limit is None:
        return
    if sys.platform != "linux":
        raise UsageError("the memory of ClientApps can be limited on Linux only")
    if limit < LEAST_MEMORY:
        raise UsageError(
            f"{shown_size(limit)} are too little for a ClientApp", hint=f"{shown_size(LEAST_MEMORY)} or more"
        )
