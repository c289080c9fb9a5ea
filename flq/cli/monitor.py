"""`flq monitor`: Celery Flower on the federation."""

from __future__ import annotations

import click

from flq.cli.federation import federated, find
from flq.cli.options import examples
from flq.cli.output import note
from flq.settings import Settings

PORT = 5555


@click.command(
    "monitor",
    epilog=examples("flq monitor", "flq monitor --port 8080"),
)
@click.option("--port", type=click.IntRange(1, 65535), default=PORT, show_default=True, help="Port of the web page.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@federated
def command(*, settings: Settings, port: int, address: str) -> int:
    """Serve Celery Flower, the monitoring UI of Celery.

    It runs on the federation's broker until interrupted, and shows the jobs that launch ServerApps: which SuperExec
    has which run. Terminating a job there stops its run. Needs the extra `monitor`: pip install 'flq[monitor]'.
    """
    broker = find(settings).needs_broker()
    from flq.exec import monitor

    return monitor.run(
        broker, port=port, address=address, ready=lambda: note(f"Celery Flower: http://{address}:{port}")
    )
