"""What PostgreSQL says when it cannot be reached or cannot go on, and which error of ours that is.

libpq has no SQLSTATE for a connection that fails, so its text is read. A server that speaks another language than
English gets the general hint.
"""

from __future__ import annotations

import re
from typing import Final

import psycopg
from psycopg import errors

from flq.errors import (
    DatabaseFull,
    DatabaseRefused,
    DatabaseUnreachable,
    FlqError,
    LinkError,
    NotAllowed,
    UsageError,
)

LOST: Final = (
    psycopg.InterfaceError,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.ConnectionException,
    errors.TooManyConnections,
    errors.IdleInTransactionSessionTimeout,
)
"""A connection is gone."""

TRANSLATED: Final = (psycopg.OperationalError, errors.InsufficientPrivilege, *LOST)
"""What becomes an error of ours. The rest is a mistake of ours."""

_PREFIX = re.compile(r"^connection (failed|is bad): |^- ")
_FATAL = re.compile(r".*?FATAL: +")
_CONNECTIONS = re.compile(r"too many (clients|connections)|connection slots are reserved")
_LOG_IN = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist"
    r"|permission denied for database|not permitted to log in"
)
_DATABASE = re.compile(r"database .* does not exist")
_MOMENT = re.compile(r"starting up|shutting down|in recovery mode|not yet accepting")


def error_of(exc: psycopg.Error, *, broken: bool) -> FlqError:
    """The error that a failure of a statement is; `broken` says whether its connection is."""
    if isinstance(exc, errors.DiskFull):
        return DatabaseFull(
            f"PostgreSQL has no room: {_first_line(exc)}",
            hint="make room on the disk of its data; runs go on by themselves then",
        )
    if isinstance(exc, errors.InsufficientPrivilege):
        return NotAllowed(
            f"PostgreSQL does not allow it: {_first_line(exc)}", hint="FLQ_DSN is to name the owner of flq's schema"
        )
    if isinstance(exc, LOST) or broken or exc.sqlstate is None:
        return unreachable(exc)
    return LinkError(f"PostgreSQL could not do it: {exc.diag.message_primary or exc}")


def unreachable(exc: psycopg.Error) -> DatabaseUnreachable:
    """The error that a connection's end is, or its failure to begin."""
    line = _first_line(exc)
    said = _FATAL.sub("", line)
    if _CONNECTIONS.search(line):
        return DatabaseFull(
            f"PostgreSQL takes no more connections: {said}",
            hint="close some, or raise its max_connections"
            " (of the embedded federation: [embedded.postgres] in config.toml)",
        )
    if _LOG_IN.search(line):
        return DatabaseRefused(
            f"PostgreSQL does not let us in: {said}",
            hint="FLQ_DSN names user and password; the password may stand in ~/.pgpass instead",
        )
    if _DATABASE.search(line):
        hint = "create it (createdb, then flq db upgrade), or correct the dbname in FLQ_DSN"
    elif _MOMENT.search(line):
        hint = "it will be back in a moment: try again"
    else:
        hint = "`flq status` shows the embedded federation; FLQ_DSN names another one"
    return DatabaseUnreachable(f"PostgreSQL cannot be reached: {line}", hint=hint)


def unreadable_dsn() -> UsageError:
    """The error that a malformed DSN is. It is not quoted, nor what libpq says of it: it may hold a password."""
    return UsageError(
        "the federation's DSN is no connection string of PostgreSQL",
        hint='FLQ_DSN is like "host=db.example.org dbname=flq user=flq", or like postgresql://flq@db.example.org/flq',
    )


def _first_line(exc: psycopg.Error) -> str:
    lines = str(exc).strip().splitlines()
    if not lines:
        return type(exc).__name__
    tried = [line for line in lines if line.startswith("- ")]  # one for each address of the host
    return _PREFIX.sub("", tried[-1] if tried else lines[0]).strip()
