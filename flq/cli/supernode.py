"""`flq supernode`: a process that hosts nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import click

from flq import log
from flq.cli.federation import federated, find
from flq.cli.options import examples
from flq.errors import UsageError
from flq.settings import Settings


@click.command(
    "supernode",
    epilog=examples(
        "flq supernode --name hospital-1 --node-config 'data=\"/data/ward-a\"' --label site=berlin",
        "flq supernode --name sim --nodes 100",
        "flq supernode --name ward --nodes 3 --node-config-file wards.toml",
        "flq supernode --name trainer --slots 2 --gpus 0,1 --memory 16GB",
    ),
)
@click.option("--name", required=True, help="The node's name: its identity over restarts. With --nodes, a prefix.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="How many nodes to host.")
@click.option(
    "--slots", type=click.IntRange(min=1), metavar="N", help="How many ClientApps compute at once [default: cores]."
)
@click.option(
    "--node-config", multiple=True, metavar="'K=V ...'", help="What apps find in context.node_config; may be repeated."
)
@click.option(
    "--node-config-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TOML file with a table for each node, keyed by its name.",
)
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="A label, for flq run --on; may be repeated.")
@click.option(
    "--isolation",
    type=click.Choice(["run", "task"]),
    default="run",
    show_default=True,
    help="Keep a warm process for each run, or start one for each task.",
)
@click.option("--gpus", metavar="LIST", help="GPUs that ClientApps share: 0,1 or UUIDs, all, none.")
@click.option("--memory", metavar="SIZE", help="Limit of memory for each ClientApp's process, such as 4GB.")
@click.option("--install-deps", is_flag=True, help="Install what apps depend on, below the home folder.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for apps, arrays and client state [default: nodes/NAME below the home folder].",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How many seconds tasks that run may take to finish at SIGTERM.",
)
@federated
def command(
    *,
    settings: Settings,
    name: str,
    nodes: int,
    slots: int | None,
    node_config: tuple[str, ...],
    node_config_file: Path | None,
    label: tuple[str, ...],
    isolation: Literal["run", "task"],
    gpus: str | None,
    memory: str | None,
    install_deps: bool,
    cache: Path | None,
    drain: float,
) -> int:
    """Run a SuperNode, until SIGTERM: one process that hosts one or many nodes.

    It claims the tasks of its nodes and runs ClientApps for them, in processes of their own.
    """
    from flq.apps.project import parse_key_values
    from flq.link.fleet import DbFleet
    from flq.node.devices import parse_gpus
    from flq.node.options import SuperNodeOptions, load_node_config_file, parse_size
    from flq.node.supernode import SuperNode

    options = SuperNodeOptions(
        name=name,
        nodes=nodes,
        slots=slots or os.cpu_count() or 1,
        node_config={key: value for text in node_config for key, value in parse_key_values(text).items()},
        per_node_config={} if node_config_file is None else load_node_config_file(node_config_file),
        labels=_labels(label),
        isolation=isolation,
        cache=(cache or settings.home / "nodes" / name).absolute(),
        environments=settings.home / "envs" if install_deps else None,
        gpus=None if gpus is None else parse_gpus(gpus),
        memory_bytes=None if memory is None else parse_size(memory),
        drain_seconds=drain,
    )
    log.to_stderr()
    return SuperNode(DbFleet(find(settings).dsn), options).run()


def _labels(given: Sequence[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not key or not equals:
            raise UsageError(f"the label {label!r} is not of the form key=value")
        found[key] = value
    return found
