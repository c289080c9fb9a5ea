"""What PostgreSQL says, in our words."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from flq.errors import (
    DatabaseFull,
    DatabaseRefused,
    DatabaseUnreachable,
    LinkError,
    NotAllowed,
    Unreachable,
    UsageError,
)
from flq.link import notify, refusals
from flq.link.database import connect
from flq.link.grid import DbGrid
from flq.wire.ids import RunId

AT = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: '


@pytest.mark.parametrize(
    ("said", "kind", "message", "hint"),
    [
        (f"{AT}Connection refused\n\tIs it running?", DatabaseUnreachable, "failed: Connection refused", "flq status"),
        (f'{AT}FATAL:  database "x" does not exist', DatabaseUnreachable, 'database "x" does not exist', "createdb"),
        (f"{AT}FATAL:  the database system is starting up", DatabaseUnreachable, "is starting up", "in a moment"),
        (f"{AT}FATAL:  sorry, too many clients already", DatabaseFull, "too many clients", "max_connections"),
        (f"{AT}FATAL:  remaining connection slots are reserved", DatabaseFull, "are reserved", "max_connections"),
        (f'{AT}FATAL:  too many connections for role "a"', DatabaseFull, "too many connections", "max_connections"),
        (f'{AT}FATAL:  password authentication failed for user "a"', DatabaseRefused, 'for user "a"', "FLQ_DSN"),
        (f"{AT}fe_sendauth: no password supplied", DatabaseRefused, "no password supplied", ".pgpass"),
        (f'{AT}FATAL:  no pg_hba.conf entry for host "b"', DatabaseRefused, "no pg_hba.conf entry", "FLQ_DSN"),
        (f'{AT}FATAL:  role "a" does not exist', DatabaseRefused, 'role "a" does not exist', "FLQ_DSN"),
        (f"{AT}FATAL:  zu viele Verbindungen", DatabaseUnreachable, "zu viele Verbindungen", "flq status"),
        ("", DatabaseUnreachable, "OperationalError", "flq status"),
    ],
)
def test_a_connection_that_fails(said: str, kind: type[DatabaseUnreachable], message: str, hint: str):
    found = refusals.unreachable(psycopg.OperationalError(said))
    assert type(found) is kind
    assert message in found.message
    assert "\n" not in found.message
    assert "connection failed: " not in found.message
    assert hint in (found.hint or "")
    assert isinstance(found, Unreachable)  # whoever waits for a server that is away waits for this one, too


def test_of_a_host_with_several_addresses_the_last_one_is_told():
    said = f'Multiple connection attempts failed. All failures were:\n- host: "db", port: 1: no\n- host: "db": {AT}no'
    assert refusals.unreachable(psycopg.OperationalError(said)).message.endswith("failed: no")


@pytest.mark.parametrize(
    ("error", "broken", "kind"),
    [
        (errors.DiskFull("could not extend file"), False, DatabaseFull),
        (errors.InsufficientPrivilege("permission denied for table run"), False, NotAllowed),
        (errors.AdminShutdown("terminating connection"), False, DatabaseUnreachable),
        (errors.LockNotAvailable("canceling statement due to lock timeout"), False, LinkError),
        (errors.LockNotAvailable("canceling statement due to lock timeout"), True, DatabaseUnreachable),
        (psycopg.InterfaceError("the connection is closed"), False, DatabaseUnreachable),
    ],
)
def test_a_statement_that_fails(error: psycopg.Error, *, broken: bool, kind: type[Exception]):
    assert type(refusals.error_of(error, broken=broken)) is kind


def test_the_exit_codes_say_who_is_at_fault():
    assert (DatabaseUnreachable.exit_code, DatabaseFull.exit_code, DatabaseRefused.exit_code) == (5, 5, 4)


def test_a_dsn_that_is_none_is_told_without_it():
    with pytest.raises(UsageError) as caught:
        connect("password=se cret", application="flq test")
    assert "cret" not in f"{caught.value} {caught.value.hint}"
    assert caught.value.__cause__ is None


def test_a_serverapp_waits_for_a_connection_that_it_does_not_get_at_once(monkeypatch: pytest.MonkeyPatch):
    """Else each attempt would end at once while PostgreSQL is full, and soon there would be none left."""
    tries: list[str] = []

    def listen(_dsn: str, *channels: str, application: str) -> str:
        tries.append(application)
        if len(tries) < 3:
            raise DatabaseFull("no more connections")
        return channels[0]

    monkeypatch.setattr(notify, "Listener", listen)
    assert DbGrid("dbname=flq", run_id=RunId(7), token=1, attempt=1).attempt == 1
    assert tries == ["flq serverapp 7"] * 3
