"""`flq db`: the federation's database: its schema, its backup, and where its objects are."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import click

from flq.cli.federation import federated, find
from flq.cli.options import examples, json_option
from flq.cli.output import note, print_json, size
from flq.settings import Settings, embedded


@click.group(
    "db",
    epilog=examples(
        "flq db upgrade",
        "flq db check",
        "flq db dump backup.flq",
        "flq db restore backup.flq",
        "flq db store /mnt/flq/objects",
    ),
)
def command() -> None:
    """Upgrade, check, dump and restore the federation's database, and say where its objects are."""


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


@command.command("dump")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@federated
def dump(*, settings: Settings, file: Path, as_json: bool) -> None:
    """Write flq's whole state into FILE, as pg_dump does; runs may be at work. Needs a direct connection.

    Objects in a directory (`flq db store`) are not in it: copy the directory too, after the dump.
    """
    from flq.link import backup

    written = backup.dump(find(settings).dsn, file, programs=_programs(settings))
    if as_json:
        print_json({"file": str(file), "bytes": written})
    else:
        note(f"wrote {file}: {size(written)}")


@command.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
@federated
def restore(*, settings: Settings, file: Path, as_json: bool) -> None:
    """Read FILE, which `flq db dump` has written, into a database that has nothing of flq. Needs a direct connection.

    Runs that were at work go on from their last committed round as soon as the federation is up.
    """
    from flq.link import backup

    backup.restore(find(settings).dsn, file, programs=_programs(settings))
    if as_json:
        print_json({"file": str(file)})
    else:
        note(f"restored {file}; check it: flq verify")


@command.command("store")
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--in-database", is_flag=True, help="Store new objects in the database again.")
@json_option
@federated
def store(*, settings: Settings, directory: Path | None, in_database: bool, as_json: bool) -> None:
    """Show where new objects are stored, or store them as files below DIRECTORY from now on.

    DIRECTORY is a folder that every process of the federation finds under this path. Objects that are stored
    already are read where they are.
    """
    if directory is not None and in_database:
        raise click.UsageError("DIRECTORY and --in-database exclude each other")
    from flq.link import schema, stores
    from flq.link.database import Database

    dsn = find(settings).dsn
    schema.check(dsn)
    with closing(Database(dsn, application="flq db store")) as db:
        if directory is not None or in_database:
            stores.choose(db, directory)
        chosen = stores.chosen(db)
    if as_json:
        print_json({"directory": None if chosen is None else str(chosen)})
    else:
        click.echo("in the database" if chosen is None else str(chosen))


def _programs(settings: Settings) -> list[Path]:
    """Folders that may have PostgreSQL's programs: those of the embedded server, and the PATH."""
    from flq.local import binaries

    path = [Path(folder) for folder in os.get_exec_path()]
    return [*binaries.postgres_folders(embedded(settings.home)), *path]
