"""A pytest plugin that runs chosen tests on one mutant after another, each in a fork of a process that is warm.

Imports, collection, servers and the template database are there once. The socket whose descriptor stands in
`FLQ_MUTATION` brings orders, a line of JSON each, and takes an answer to each:

- `{"learn": true}`: run every test on the originals; what each one takes, and which statements and lines it runs.
- `{"mutant": N, "tests": [...], "seconds": S}`: run these tests on a mutant until one fails; `killer` is its name.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

import coverage
import psycopg
import pytest
from _pytest.fixtures import SubRequest

from flq.link import database
from tests.mutation import functions, statements
from tests.mutation.mutants import numbered

REPORTS: list[pytest.TestReport] = []
"""Of the test that has run last."""

DATABASES: set[str] = set()
"""Those of this process."""

EMPTY = """
DO $$
DECLARE
    name text;
BEGIN
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    SET LOCAL session_replication_role = replica;
    FOR name IN SELECT oid::regclass FROM pg_class
                WHERE relnamespace = 'flq_state'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
                  AND relname NOT IN ('alembic_version', 'setting')
    LOOP
        EXECUTE format('DELETE FROM %s', name);
    END LOOP;
    FOR name IN SELECT oid::regclass FROM pg_class WHERE relnamespace = 'flq_state'::regnamespace AND relkind = 'S'
    LOOP
        EXECUTE format('ALTER SEQUENCE %s RESTART', name);
    END LOOP;
    TRUNCATE flq_state.task;  -- of which a test makes many
END
$$
"""

STATEMENT_TIMEOUT = "20s"
"""Of a mutant: one that looks into an index without end is told sooner."""

TIMEOUT = "time-out"
"""The killer of a mutant that does not end."""


class Statements(dict[str, str]):
    """The statements of a module; notes which ones are asked for."""

    def __init__(self, aggregate: str, statements_: dict[str, str]) -> None:
        super().__init__(statements_)
        self._aggregate = aggregate
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(f"{self._aggregate}.sql:{name}")
        return super().__getitem__(name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """In place of running the tests: take orders."""
    items = {item.nodeid: item for item in session.items}
    warm, *others = session.items
    warm.ihook.pytest_runtest_protocol(item=warm, nextitem=others[0])  # the session's fixtures are there from here on
    known = list(numbered([*statements.mutants(), *functions.mutants()]))
    with socket.socket(fileno=int(os.environ["FLQ_MUTATION"])) as connection, connection.makefile("rw") as lines:
        for fork, line in enumerate(lines):
            order = json.loads(line)
            _own_names(fork)
            if "learn" in order:
                answer = _in_fork(lambda: _learn(session.items), order["seconds"])
            else:
                mutant = known[order["mutant"]]
                chosen = [items[name] for name in order["tests"]]
                answer = _in_fork(lambda: _kill(mutant.install, chosen), order["seconds"])  # noqa: B023 - called now
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: SubRequest) -> str | None:
    """In place of a new database for each test: the fork's own, emptied. Plans depend on what was there before."""
    if fixturedef.argname != "dsn" or hasattr(request, "param") or "/plans/" in request.node.nodeid:
        return None
    servers, admin, template = (request.getfixturevalue(name) for name in ("servers", "admin", "template"))
    name = f"flq_fork_{os.getpid()}"
    dsn = str(servers.dsn.replace("dbname=flq", f"dbname={name}"))
    if name in DATABASES:
        _empty(dsn)
    else:
        admin(f"CREATE DATABASE {name} TEMPLATE {template}")
        DATABASES.add(name)
    fixturedef.cached_result = (dsn, fixturedef.cache_key(request), None)
    return dsn


def _empty(dsn: str) -> None:
    """As after the migration; whoever is still connected is not any more."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(EMPTY)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take down what becomes of a test."""
    REPORTS.append(report)


def _own_names(fork: int) -> None:
    """Databases and connections of one fork are never those of another."""
    for module in ("tests.conftest", "tests.concurrency.overlap"):
        import_module(module).NUMBERS = itertools.count((fork + 1) * 100_000)  # type: ignore[attr-defined]


def _in_fork(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns in a process that is then ended; or that it took longer than `seconds`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        with os.fdopen(writing, "w") as told:
            json.dump(work(), told)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        ended = select.select([told], [], [], seconds)[0]
        answer = told.read() if ended else json.dumps({"killer": TIMEOUT, "how": f"after {seconds:.0f} s"})
    if not ended:
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return json.loads(answer or json.dumps({"killer": "its process ended", "how": ""}))


def _kill(install: Callable[[], None], items: Sequence[pytest.Item]) -> dict[str, Any]:
    started = time.monotonic()
    database.LIMITS["statement_timeout"] = STATEMENT_TIMEOUT
    install()
    for item, report in _reports(items):
        if report.failed:
            how = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr))
            return {"killer": item.nodeid, "how": how.partition("\n")[0], "seconds": time.monotonic() - started}
    return {"killer": None, "seconds": time.monotonic() - started}


def _learn(items: Sequence[pytest.Item]) -> dict[str, Any]:
    """What each test takes and runs, and which of them fail on the originals."""
    asked = []
    for aggregate in statements.STATEMENTS:
        module = import_module(f"flq.link.{aggregate}")
        noted = Statements(aggregate, module.SQL)
        module.SQL = noted  # type: ignore[attr-defined]
        asked.append(noted)
    files = {name: import_module(f"flq.link.{name}").__file__ or "" for name in functions.MODULES}
    watch = coverage.Coverage(data_file=None, include=list(files.values()), config_file=False)
    watch.start()
    tests: dict[str, dict[str, Any]] = {}
    for item, report in _reports(items, before=lambda item: watch.switch_context(item.nodeid)):
        test = tests.setdefault(item.nodeid, {"seconds": 0.0, "failed": "", "runs": []})
        test["seconds"] += report.duration
        if report.failed:
            test["failed"] = str(report.longrepr)
        for noted in asked:
            test["runs"] = sorted({*test["runs"], *noted.asked})
            noted.asked.clear()
    watch.stop()
    for name, file in files.items():
        for line, contexts in watch.get_data().contexts_by_lineno(file).items():
            for test_name in contexts:
                if test_name in tests:
                    tests[test_name]["runs"].append(f"{name}:{line}")
    return {"tests": tests}


def _reports(
    items: Sequence[pytest.Item], *, before: Callable[[pytest.Item], object] = lambda _: None
) -> Iterator[tuple[pytest.Item, pytest.TestReport]]:
    """Run tests as pytest does; the fixtures of the session outlive the last of them."""
    session = items[0].session
    session._setupstate.teardown_exact(items[0])
    last = next(item for item in session.items if item is not items[-1])
    for item, following in zip(items, [*items[1:], last], strict=True):
        before(item)
        REPORTS.clear()
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        for report in REPORTS:
            yield item, report
