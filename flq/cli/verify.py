"""`flq verify`: whether the federation's state is in order."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from flq.cli.federation import federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import Failure, note, print_failure, print_json, print_table
from flq.settings import Settings

if TYPE_CHECKING:
    from flq.link.verify import Finding

SHOWN = 5


@click.command(
    "verify",
    epilog=examples("flq verify", "flq verify --payloads", "flq verify --json | jq '.data[] | select(.broken != [])'"),
)
@click.option("--payloads", is_flag=True, help="Also read every stored object and verify its hash.")
@json_option
@federated
def command(*, settings: Settings, payloads: bool, as_json: bool) -> int:
    """Check the invariants of the federation's state on the live database; exits with 1 if one is broken.

    It looks at one snapshot, changes nothing, and may be run at any time.
    """
    from flq.link import schema, verify
    from flq.link.database import Database

    dsn = find(settings).dsn
    schema.check(dsn)
    with closing(Database(dsn, application="flq verify")) as db:
        findings = verify.run(db, payloads=payloads)
    broken = [finding.invariant for finding in findings if not finding.holds]
    failure = Failure("broken", f"broken: {', '.join(broken)}") if broken else None
    if as_json:
        print_json(findings, failure)
        return int(failure is not None)
    print_table(("INVARIANT", "STATE", "MEANING"), [(f.invariant, _state(f), f.meaning) for f in findings])
    for finding in findings:
        for told in finding.broken[:SHOWN]:
            note(f"{finding.invariant}: {told}")
    if failure is not None:
        print_failure(failure, as_json=False)
    return int(failure is not None)


def _state(finding: Finding) -> str:
    if finding.holds:
        return "ok"
    return f"broken: {len(finding.broken)}{'+' if finding.more else ''}"
