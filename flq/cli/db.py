"""`flq db`: the schema of the federation's database."""

from __future__ import annotations

import click

from flq.cli.federation import federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import note, print_json
from flq.settings import Settings


@click.group(
    "db",
    epilog=examples("flq db upgrade", "flq db check"),
)
def command() -> None:
    """Upgrade and check the schema of the federation's database."""


@command.command("upgrade")
@json_option
@federated
def upgrade(*, settings: Settings, as_json: bool) -> None:
    """Bring the schema to the revision that this flq needs. Needs a direct connection, not a pooler's."""
    from flq.link import schema

    dsn = find(settings).dsn
    before = schema.current(dsn)
    schema.upgrade(dsn)
    after = schema.current(dsn)
    if as_json:
        print_json({"before": before, "after": after})
    else:
        note(f"at {after} already" if before == after else f"upgraded from {before or 'nothing'} to {after}")


@command.command("current")
@json_option
@federated
def current(*, settings: Settings, as_json: bool) -> None:
    """Print the database's revision, and the one that this flq needs."""
    from flq.link import schema

    found, needed = schema.current(find(settings).dsn), schema.head()
    if as_json:
        print_json({"current": found, "needed": needed})
        return
    click.echo(found or "none")
    if found != needed:
        note(f"this flq needs {needed}")


@command.command("check")
@json_option
@federated
def check(*, settings: Settings, as_json: bool) -> None:
    """Exit with 0 if the schema is what this flq needs, with 1 if it is not."""
    from flq.link import schema

    schema.check(find(settings).dsn)
    if as_json:
        print_json({"current": schema.head()})
    else:
        note(f"the schema is at {schema.head()}, as this flq needs it")
