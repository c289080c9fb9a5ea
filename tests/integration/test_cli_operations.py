"""`flq verify`, `flq prune` and `flq db dump | restore | store` on a real database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flq.cli.main import main
from flq.link import runs
from flq.link.database import Database
from flq.local.state import Addresses
from tests.integration.link_acts import Doors
from tests.integration.used import Used

Flq = Callable[..., Result]


@pytest.fixture
def flq(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flq:
    monkeypatch.setenv("FLQ_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FLQ_DSN", dsn)
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


@pytest.fixture
def fresh(servers: Addresses, admin: Callable[[str], None]) -> Iterator[str]:
    admin("CREATE DATABASE flq_fresh")
    yield servers.dsn.replace("dbname=flq", "dbname=flq_fresh")
    admin("DROP DATABASE flq_fresh WITH (FORCE)")


def data(result: Result) -> Any:
    found = json.loads(result.stdout)
    assert found["status"] == "ok", found
    return found["data"]


def test_verify_prints_a_table_and_exits_with_1_if_something_is_broken(flq: Flq, doors: Doors, db: Database):
    Used(doors, db).completed()
    result = flq("verify", "--payloads")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "payloads_have_their_hash" in result.stdout
    assert {line.split()[1] for line in result.stdout.splitlines()[1:]} == {"ok"}
    with db.connection() as connection:
        connection.execute("UPDATE flq_state.log_line SET run_id = 4711")
    result = flq("verify")
    assert result.exit_code == 1
    assert "broken: 2" in result.stdout
    assert "has no run 4711" in result.stderr
    result = flq("verify", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["error"]["code"]) == (1, "broken")
    assert [len(row["broken"]) for row in found["data"] if row["invariant"] == "no_orphans"] == [2]


def test_prune_says_what_it_frees(flq: Flq, doors: Doors, db: Database):
    used = Used(doors, db)
    name = next(row.name for row in runs.listing(db, run_id=used.completed()))
    would = data(flq("prune", name, "--dry-run", "--json"))
    assert (would["runs"], would["results"], would["checkpoints"]) == (1, 4, 2)
    result = flq("prune", name)
    assert result.exit_code == 0
    assert "results      4" in result.stdout
    assert "freed " in result.stderr
    assert "of 1 runs" in result.stderr
    assert data(flq("prune", name, "--json"))["results"] == 0
    assert data(flq("ls", "--json"))[0]["name"] == name
    assert data(flq("prune", "--older-than", "0m", "--history", "--json"))["runs"] == 1
    assert data(flq("ls", "--json")) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name runs, or give --older-than"),
        (["--older-than", "soon"], "is no age"),
        (["brave-otter", "--payloads", "--history"], "exclude each other"),
    ],
)
def test_what_prune_does_not_take(flq: Flq, arguments: list[str], told: str):
    result = flq("prune", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def test_prune_leaves_runs_alone_that_are_at_work_or_unknown(flq: Flq, doors: Doors):
    _, claim = doors.grid()
    result = flq("prune", claim.run.name)
    assert result.exit_code == 1
    assert "not finished" in result.stderr
    assert flq("prune", "nobody").exit_code == 1


@pytest.fixture
def completed(doors: Doors, db: Database) -> None:
    """There is a run that has completed."""
    Used(doors, db).completed()


@pytest.mark.usefixtures("completed")
def test_dump_and_restore(flq: Flq, fresh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "backup.flq"
    assert data(flq("db", "dump", str(file), "--json")) == {"file": str(file), "bytes": file.stat().st_size}
    assert "wrote" in flq("db", "dump", str(file)).stderr
    assert "already" in flq("db", "restore", str(file)).stderr
    monkeypatch.setenv("FLQ_DSN", fresh)
    result = flq("db", "restore", str(file))
    assert result.exit_code == 0, result.stderr
    assert flq("verify", "--payloads").exit_code == 0
    assert len(data(flq("ls", "--json"))) == 1


def test_where_objects_are_is_shown_and_chosen(flq: Flq, tmp_path: Path):
    folder = tmp_path / "objects"
    assert flq("db", "store").stdout == "in the database\n"
    assert flq("db", "store", str(folder)).stdout == f"{folder}\n"
    assert data(flq("db", "store", "--json")) == {"directory": str(folder)}
    assert flq("db", "store", "--in-database").stdout == "in the database\n"
    assert flq("db", "store", str(folder), "--in-database").exit_code == 2
    (tmp_path / "file").write_text("")
    result = flq("db", "store", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    assert "cannot be used" in result.stderr
