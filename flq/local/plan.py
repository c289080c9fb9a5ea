"""What the embedded federation consists of: the plan that its supervisor carries out."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from flq import settings
from flq.local import postgres, valkey
from flq.local.layout import Layout
from flq.local.process import ChildSpec, python, python_environment

DATABASE = "database"
SUPERLINK = "superlink"
SUPEREXEC = "superexec"
SUPERNODE = "supernode"


def federation(layout: Layout, nodes: int) -> list[ChildSpec]:
    """The children of a federation with `nodes` hosted nodes.

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
    return [*servers, _database(layout, environment, new=new), *_processes(layout, environment, nodes)]


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


def _processes(layout: Layout, environment: Mapping[str, str], nodes: int) -> list[ChildSpec]:
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
        process(SUPEREXEC, stop=signal.SIGQUIT),
        process(SUPERNODE, "--name", "node", "--nodes", str(nodes)),
    ]
