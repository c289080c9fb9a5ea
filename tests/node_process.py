"""`python -m tests.node_process FOLDER PROJECT GATE`: a SuperNode with one task, whose SuperLink is in memory."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from flq.node.supernode import SuperNode
from tests.fleet_double import FleetDouble
from tests.node_app import node_options
from tests.waiting import eventually


def main(folder: str, project: str, gate: str) -> int:
    """Run it until a signal ends it."""
    fleet = FleetDouble()

    def push() -> None:
        eventually(lambda: fleet.connected, what="the SuperNode to connect")
        fleet.push(fleet.add_run(Path(project), config={"folder": gate}), ["node"])

    threading.Thread(target=push, daemon=True).start()
    code = SuperNode(fleet, node_options(Path(folder))).run()
    print(f"results: {len(fleet.results)}")  # noqa: T201 - read by the test
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
