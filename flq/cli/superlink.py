"""`flq superlink`: the SuperLink's process."""

from __future__ import annotations

import signal
import threading

import click

from flq import log
from flq.cli.federation import federated, find
from flq.cli.options import examples
from flq.settings import Settings, announce_ready


@click.command(
    "superlink",
    epilog=examples('FLQ_DSN="host=db dbname=flq" FLQ_BROKER=redis://broker/0 flq superlink'),
)
@federated
def command(*, settings: Settings) -> None:
    """Run a SuperLink, until SIGTERM.

    It starts pending runs and looks after leases and deadlines. It refuses to start on a database of another schema
    revision; `flq db upgrade` brings it up to date.
    """
    place = find(settings)
    broker = place.needs_broker()
    from flq.exec.publisher import publisher
    from flq.link import schema, superlink

    log.to_stderr()
    schema.check(place.dsn)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    superlink.serve(place.dsn, publisher(broker), stop=stop, ready=announce_ready)
