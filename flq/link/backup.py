"""Backup: the schemas of flq in one file, by `pg_dump` and `pg_restore`. Needs a direct connection, not a pooler's.

A dump is one snapshot, so it can be taken while runs are at work: what a restored federation sees of them is what it
would see after a crash at that moment. The programs get the address of the database in their environment, since every
user of a machine can read the command lines of its processes.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from psycopg import pq

from flq.errors import LinkError, SchemaError, UsageError
from flq.link import schema
from flq.link.database import Database, connect
from flq.link.sql import load
from flq.settings import child_environment

SQL: Final = load("backup")

SCHEMAS = ("flq_state", "flq")

PARTITIONS_IN_FILE = ("--format=custom", "--compress=0")
"""Payloads do not compress; what else is in the file does not matter beside them."""


def dump(dsn: str, file: Path, *, programs: Iterable[Path]) -> int:
    """Write flq's state into `file`, which appears when it is whole; returns its size.

    `programs` are folders that may have `pg_dump`; it has to be as new as the server. Raises `SchemaError` if the
    database is at another revision, and `LinkError` if it cannot be dumped.
    """
    schema.check(dsn)
    major, _ = _server(dsn)
    program = _program("pg_dump", programs, major)
    draft = file.with_name(f"{file.name}.part")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds all that the database has
        with os.fdopen(descriptor, "wb") as output:
            arguments = [*PARTITIONS_IN_FILE, *(f"--schema={name}" for name in SCHEMAS)]
            _run([str(program), *arguments], dsn, output=output.fileno())
            os.fsync(output.fileno())
        draft.replace(file)
    except OSError as exc:
        raise UsageError(f"{file} cannot be written: {exc.strerror or exc}") from exc
    finally:
        draft.unlink(missing_ok=True)
    return file.stat().st_size


def restore(dsn: str, file: Path, *, programs: Iterable[Path]) -> None:
    """Read what `dump` has written into a database that has nothing of flq: all of it, or nothing.

    Raises `SchemaError` if there is something, or if the dump is of another revision than this flq's, and `LinkError`
    if it cannot be restored.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    major, taken = _server(dsn)
    if taken:
        raise SchemaError(
            "the database has flq's schema already", hint="restore into a new one: createdb, and FLQ_DSN to name it"
        )
    program = _program("pg_restore", programs, major)
    with connect(dsn, application="flq restore") as connection:
        connection.execute(SQL["make_reader"])
    _run([str(program), "--single-transaction", "--exit-on-error", "--no-owner", "--dbname=", str(file)], dsn)
    _settle(dsn)
    schema.check(dsn)


def _settle(dsn: str) -> None:
    """Make what is bound to the cluster of then fit this one."""
    db = Database(dsn, application="flq restore")
    try:
        with db.transaction() as tx:
            tx.execute(SQL["restore_timeouts"])
            for name in ("settle_results", "settle_logs", "settle_events", "settle_processes"):
                tx.execute(SQL[name])
    finally:
        db.close()


def _server(dsn: str) -> tuple[int, bool]:
    with connect(dsn, application="flq backup") as connection:
        row = connection.execute(SQL["server_version"]).fetchone()
    assert row is not None, "a query without FROM has a row"  # noqa: S101
    return row[0], row[1]


def _program(name: str, folders: Iterable[Path], server: int) -> Path:
    """The first program that is as new as the server. Raises `LinkError`."""
    found = []
    for folder in folders:
        program = folder / name
        if program.is_file():
            major = _major(program)
            if major is not None and major >= server:
                return program
            found.append(f"{program} is of version {major}")
    told = "; ".join(found) or f"there is no {name} on this machine"
    raise LinkError(
        f"the server is PostgreSQL {server}, and {told}",
        hint=f"install the client programs of PostgreSQL {server}, and set FLQ_PG_BIN to their folder",
    )


def _major(program: Path) -> int | None:
    said = subprocess.run([program, "--version"], capture_output=True, check=False, text=True).stdout
    number = re.search(r"\) (\d+)", said)
    return int(number[1]) if number else None


def _run(command: list[str], dsn: str, *, output: int | None = None) -> None:
    done = subprocess.run(
        command, env=child_environment(_environment(dsn)), check=False, stdout=output, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise LinkError(f"{Path(command[0]).name} failed: {told[-1]}", hint=told[0] if len(told) > 1 else None)


def _environment(dsn: str) -> Mapping[str, str]:
    """A DSN as the variables that PostgreSQL's programs read."""
    found = {}
    for option in pq.Conninfo.parse(dsn.encode()):
        if option.val is not None and option.envvar is not None:
            found[option.envvar.decode()] = option.val.decode()
    return found
