"""Which nodes take part in a round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from logging import INFO

from flq.apps.logger import log
from flq.apps.strategy.grids import MessageGrid, NamingGrid, WaitingGrid
from flq.errors import StrategyError

NODE_WAIT_SECONDS = 3600.0
"""How long a strategy waits for its nodes, unless it is told otherwise."""

LOOK_SECONDS = 1.0
_TELL_SECONDS = 30.0


def sample_nodes(
    grid: MessageGrid, min_available_nodes: int, sample_size: int, *, seed: str | None = None
) -> tuple[list[int], list[int]]:
    """Choose `sample_size` nodes of those that are online, and return them and all that are online, in order.

    Waits until `min_available_nodes`, and as many as are to be chosen, are online. The same `seed` chooses the same of
    the same nodes; without one the choice is that of `random`. Raises `StrategyError` if they do not come.
    """
    nodes = available_nodes(grid, max(min_available_nodes, sample_size))
    return choose(nodes, sample_size, seed=seed), nodes


def choose(nodes: Sequence[int], size: int, *, seed: str | None) -> list[int]:
    """Choose `size` of `nodes`, in order."""
    if size >= len(nodes):
        return sorted(nodes)
    generator = random.Random(seed) if seed is not None else random  # noqa: S311 - no secret hangs on it
    return sorted(generator.sample(sorted(nodes), size))


def available_nodes(
    grid: MessageGrid,
    at_least: int,
    *,
    timeout: float = NODE_WAIT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> list[int]:
    """The nodes that are online, in order, once there are `at_least` so many.

    Raises `StrategyError` if there are too few after `timeout` seconds.
    """
    return sorted(await_nodes(grid, at_least, timeout=timeout, clock=clock))


def await_nodes(
    grid: MessageGrid,
    at_least: int,
    *,
    timeout: float = NODE_WAIT_SECONDS,
    labels: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[int, str]:
    """The same, with the nodes' names; only nodes with these labels count, if there are any."""
    started, told = clock(), float("-inf")
    while True:
        nodes = _online(grid, labels or {})
        if len(nodes) >= at_least:
            return nodes
        now = clock()
        online = f"{len(nodes)} of {at_least} nodes {_labelled(labels)}are online"
        online += f" ({', '.join(nodes.values())})" if nodes else ""
        if now - started >= timeout:
            raise StrategyError(
                f"{online} after {now - started:.0f} s",
                hint="start more SuperNodes (flq up --nodes N), or lower min_available_nodes and min_train_nodes of"
                " the strategy",
            )
        if now - told >= _TELL_SECONDS:
            log(INFO, "waiting for nodes: %s; giving up in %.0f s", online, timeout - (now - started))
            told = now
        _pause(grid)


def _labelled(labels: Mapping[str, str] | None) -> str:
    return f"with {', '.join(f'{key}={value}' for key, value in labels.items())} " if labels else ""


def _online(grid: MessageGrid, labels: Mapping[str, str]) -> dict[int, str]:
    if isinstance(grid, NamingGrid):
        return {node.node_id: node.name for node in grid.get_nodes() if labels.items() <= node.labels.items()}
    if labels:
        raise StrategyError("node_labels were given, but this Grid does not know the labels of its nodes")
    return {node_id: f"node {node_id}" for node_id in sorted(grid.get_node_ids())}


def _pause(grid: MessageGrid) -> None:
    if isinstance(grid, WaitingGrid):
        grid.wait(LOOK_SECONDS)
    else:
        time.sleep(LOOK_SECONDS)
