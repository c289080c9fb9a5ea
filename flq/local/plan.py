"""What the embedded federation consists of: the plan that its supervisor carries out."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence

from flq import settings
from flq.local import postgres, valkey
from flq.local.layout import Layout
from flq.local.process import ChildSpec, python, python_environment

DATABASE = "database"
SUPERLINK = "superlink"
SUPEREXEC = "superexec"
SUPERNODE = "supernode"


DRAIN_SECONDS = 8
"""How long ClientApps may take to finish at the end: less than the grace of a child."""


def federation(layout: Layout, nodes: int, *, install_deps: bool = False) -> list[ChildSpec]:
    """The children of a federation with `nodes` hosted nodes.

    With `install_deps`, or `install-deps = true` in the table `[embedded]` of `config.toml`, what apps depend on is
    installed.

    Raises `LocalError` if one of the servers cannot be run here, `UsageError` if `config.toml` cannot be read.
    """
    embedded = settings.embedded(layout.home)
    servers = [*postgres.specs(layout, embedded), valkey.spec(layout, embedded)]
    new = any(server.name == postgres.INITDB for server in servers)
    environment = python_environment(
        {
            "FLQ_HOME": str(layout.home),
            "FLQ_DSN": layout.addresses.dsn,
            "FLQ_BROKER": layout.addresses.broker,
            "FLQ_FEDERATION": None,  # the addresses say it
        }
    )
    options = ("--install-deps",) if install_deps or embedded.install_deps else ()
    return [*servers, _database(layout, environment, new=new), *_processes(layout, environment, nodes, options)]


def _database(layout: Layout, environment: Mapping[str, str], *, new: bool) -> ChildSpec:
    # needs nothing: it waits for Postgres itself, and loads its modules meanwhile
    return ChildSpec(
        name=DATABASE,
        argv=python("-m", "flq.local.database", *(["--new"] if new else [])),
        log=layout.log(DATABASE),
        env=environment,
        once=True,
        patience=600.0,
    )


def _processes(layout: Layout, environment: Mapping[str, str], nodes: int, options: Sequence[str]) -> list[ChildSpec]:
    needs = frozenset({postgres.NAME, valkey.NAME, DATABASE})

    def process(name: str, *arguments: str, stop: signal.Signals = signal.SIGTERM) -> ChildSpec:
        return ChildSpec(
            name=name,
            argv=python("-m", "flq", name, *arguments),
            log=layout.log(name),
            env=environment,
            needs=needs,
            stop_signal=stop,
            death_signal=stop,
        )

    return [
        process(SUPERLINK),
        # Celery takes SIGTERM as a wish to finish what runs first, which may take hours
        process(SUPEREXEC, *options, stop=signal.SIGQUIT),
        process(SUPERNODE, *_supernode(layout, nodes), *options),
    ]


def _supernode(layout: Layout, nodes: int) -> tuple[str, ...]:
    # one node has the name and the folder that it has among several: it stays the same when the federation grows
    hosted = ("--name", "node-1") if nodes == 1 else ("--name", "node", "--nodes", str(nodes))
    return (*hosted, "--cache", str(layout.home / "nodes" / "node"), "--drain", str(DRAIN_SECONDS))
