"""A supervisor whose flq processes are stand-ins: `python -m tests.integration.local_stand_in PLAN --home ...`.

The plans: `servers` has the real Postgres, Valkey and database step, `simple` has none of them, and the others fail
in their own ways.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from flq.local import plan, supervisor
from flq.local.layout import Layout
from flq.local.process import ChildSpec, python, python_environment

OBEDIENT = """
import signal, sys
from flq.settings import announce_ready
for number in (signal.SIGTERM, signal.SIGQUIT):
    signal.signal(number, lambda *_: sys.exit(0))
announce_ready()
signal.pause()
"""

STUBBORN = OBEDIENT.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")

SILENT = OBEDIENT.replace("announce_ready()", "")

BROKEN = "import sys; sys.exit('the flux is out of order')"

STAND_INS = (plan.SUPERLINK, plan.SUPEREXEC, plan.SUPERNODE)


def servers(layout: Layout, nodes: int) -> list[ChildSpec]:
    """The plan of a federation, with stand-ins for flq's own three processes."""
    return [
        replace(spec, argv=python("-c", OBEDIENT, *spec.argv[2:])) if spec.name in STAND_INS else spec
        for spec in plan.federation(layout, nodes)
    ]


def simple(layout: Layout, nodes: int) -> list[ChildSpec]:
    """Three processes, the last of which is a SuperNode."""
    base, supernode = _child(layout, "base"), _child(layout, plan.SUPERNODE, arguments=(str(nodes),))
    return [base, _child(layout, "middle", needs={"base"}), replace(supernode, needs=frozenset({"middle"}))]


def broken(layout: Layout, _nodes: int) -> list[ChildSpec]:
    """A process that ends at once, beside one that would work."""
    return [_child(layout, "base"), _child(layout, "flux", code=BROKEN)]


def broken_step(layout: Layout, _nodes: int) -> list[ChildSpec]:
    """A step that fails."""
    return [_child(layout, "base"), replace(_child(layout, "flux", code=BROKEN), once=True)]


def stubborn(layout: Layout, _nodes: int) -> list[ChildSpec]:
    """A process that does not end when it is asked to."""
    return [replace(_child(layout, "base", code=STUBBORN), grace=0.3)]


def silent(layout: Layout, _nodes: int) -> list[ChildSpec]:
    """A process that never becomes ready."""
    return [replace(_child(layout, "base", code=SILENT), patience=0.3)]


def _child(
    layout: Layout,
    name: str,
    *,
    code: str = OBEDIENT,
    needs: set[str] | None = None,
    arguments: Sequence[str] = (),
) -> ChildSpec:
    return ChildSpec(
        name=name,
        argv=python("-c", code, *arguments),
        log=layout.log(name),
        env=python_environment({"FLQ_HOME": str(layout.home)}),
        needs=frozenset(needs or ()),
        stop_signal=signal.SIGTERM,
    )


PLANS = {
    "servers": servers,
    "simple": simple,
    "broken": broken,
    "broken-step": broken_step,
    "stubborn": stubborn,
    "silent": silent,
}

if __name__ == "__main__":
    sys.exit(supervisor.main(sys.argv[2:], plan_for=PLANS[sys.argv[1]]))
