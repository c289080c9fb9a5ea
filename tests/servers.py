"""The real servers of tests: `python -m tests.servers --home HOME --nodes 0` supervises Postgres and Valkey."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flq.local import plan, supervisor
from flq.local.layout import Layout
from flq.local.process import ChildSpec

OF_FLQ = frozenset({plan.SUPERLINK, plan.SUPEREXEC, plan.SUPERNODE})


def servers(layout: Layout, nodes: int) -> Sequence[ChildSpec]:
    """Postgres with flq's database, and Valkey, without the processes of flq."""
    return [child for child in plan.federation(layout, nodes) if child.name not in OF_FLQ]


if __name__ == "__main__":
    sys.exit(supervisor.main(plan_for=servers))
