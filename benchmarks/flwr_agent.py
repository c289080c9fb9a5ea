"""Asks Flower (flwr) how it is, for `flwr_federation`: a process of its own, in the environment of the peers.

    python -P flwr_agent.py ADDRESS

Each line on stdin is a question, each line on stdout its answer as JSON: `nodes` (how many are online), `run ID`.
It stays connected: the command line of Flower (flwr) would start Python for each question, and disturb what
is measured.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest  # type: ignore[import-not-found]
from flwr.supercore.control.control_http_client import ControlHttpClient  # type: ignore[import-not-found]
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor  # type: ignore[import-not-found]


def main(address: str) -> None:
    """Answer until stdin ends."""
    client = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    for line in sys.stdin:
        print(json.dumps(answer(client, line.split())), flush=True)


def answer(client: Any, question: list[str]) -> dict[str, Any]:
    """Answer one question; a server that is not up yet, or overloaded, is an answer too."""
    try:
        if question[0] == "nodes":
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
            return {"online": sum(node.status == "online" for node in nodes)}
        number = int(question[1])
        info = client.ListRuns(ListRunsRequest(run_id=number)).run_dict[number]
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is told
        return {"error": f"{type(exc).__name__}: {exc}"}
    status = info.status
    return {
        "status": status.status,
        "outcome": status.sub_status,
        "details": status.details,
        "finished_at": info.finished_at,
    }


if __name__ == "__main__":
    main(sys.argv[1])
