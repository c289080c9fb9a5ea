"""The real servers of tests: `python -m tests.servers --home HOME --nodes 0` supervises Postgres and Valkey."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flq import settings
from flq.local import postgres, supervisor, valkey
from flq.local.layout import Layout
from flq.local.process import ChildSpec


def plan(layout: Layout, _nodes: int) -> Sequence[ChildSpec]:
    """Postgres and Valkey, without the processes of flq."""
    embedded = settings.embedded(layout.home)
    return [*postgres.specs(layout, embedded), valkey.spec(layout, embedded)]


if __name__ == "__main__":
    sys.exit(supervisor.main(plan_for=plan))
