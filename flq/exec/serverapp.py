"""The entry of a ServerApp's process: `python -m flq.exec.serverapp ORDERS REPORT PARENT`.

ORDERS and REPORT are descriptors of inherited pipes (see `handover`), PARENT is the pid of the launcher. The process
imports what any ServerApp needs, then waits for its credentials: so it can be started ahead of its run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flq.errors import AppLoadError, AttemptFenced, FlqError, ProjectError, Unreachable
from flq.exec.handover import Credentials, Report, work_folder
from flq.exec.lifeline import die_with
from flq.exec.process import THREAD_VARIABLES
from flq.exec.streams import start_clean, tell
from flq.failpoints import reach

if TYPE_CHECKING:
    from flq.apps import Context, Grid
    from flq.link.grid import DbGrid
    from flq.wire.runs import RunInfo

    App = Callable[[Grid, Context], None]


def main(arguments: list[str]) -> int:
    """Become the ServerApp of the attempt whose credentials come in; returns the exit code."""
    orders, report, parent = (int(argument) for argument in arguments)
    die_with(parent, signal.SIGKILL)
    start_clean(orders, report)
    _import_ahead()
    with os.fdopen(orders, "rb") as pipe:
        data = pipe.read()
    if not data:
        return 0  # nobody needs this process any more
    end = execute(Credentials.decode(data))
    with suppress(OSError):  # a full disk or a closed stream is no reason to lose the report
        sys.stdout.flush()
        sys.stderr.flush()
    reach("serverapp.before-report")
    with os.fdopen(report, "wb") as pipe:
        pipe.write(end.encode())
    return 0 if end.outcome == "completed" else 1


def execute(credentials: Credentials) -> Report:
    """Execute one attempt from the top of the app's `main`, and judge how it ended."""
    from flq.link.grid import DbGrid
    from flq.wire.ids import RunId

    folder = None
    try:
        run_id, token, attempt = RunId(credentials.run_id), credentials.token, credentials.attempt
        with closing(DbGrid(credentials.dsn, run_id=run_id, token=token, attempt=attempt)) as door:
            run = door.run()
            with _disk_explained():
                folder = _unpack(door, run, credentials.home)
                _work_in(work_folder(credentials.home, run.name))
            _provide(folder, credentials)
            _execute(door, run, folder, attempt)
    except BaseException as exc:  # noqa: BLE001 - the app's code may raise anything, and this is where it ends
        return _judge(exc, folder)
    return Report(outcome="completed")


def _execute(door: DbGrid, run: RunInfo, folder: Path, attempt: int) -> None:
    from flq.apps import Context, Grid, RecordDict
    from flq.apps.checkpoints import Checkpoints
    from flq.apps.generators import seed_run
    from flq.apps.loader import load_serverapp
    from flq.wire.ids import SUPERLINK_NODE_ID

    seed_run(run.seed)
    app = load_serverapp(folder)
    seed_run(run.seed)  # loading may have drawn numbers, or brought torch
    grid = Grid(door)
    context = Context(
        run_id=run.run_id,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run.config),
        attempt=attempt,
        checkpoints=Checkpoints(grid),
    )
    door.begin(_threads())
    app(grid, context)


def _provide(folder: Path, credentials: Credentials) -> None:
    """Raise `AppLoadError` if something is not installed that the app depends on, unless it may be installed now."""
    from flq.apps.environments import provide
    from flq.apps.project import load_project

    environments = credentials.home / "envs" if credentials.install_deps else None
    provide(load_project(folder), where=f"the SuperExec on {socket.gethostname()}", environments=environments)


def _import_ahead() -> None:
    import flq.apps
    import flq.apps.bundle
    import flq.apps.environments
    import flq.apps.loader
    import flq.link.grid  # noqa: F401 - imported so that the run does not wait for it


def _unpack(door: DbGrid, run: RunInfo, home: Path) -> Path:
    from flq.apps.bundle import unpack

    return unpack(door.bundle(run.bundle), run.bundle, home / "apps")


@contextmanager
def _disk_explained() -> Iterator[None]:
    """Raise `AppLoadError` if the app has no place on this machine: that is no error of the app's."""
    try:
        yield
    except OSError as exc:
        where = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
        raise AppLoadError(
            f"the app cannot be unpacked by the SuperExec on {socket.gethostname()}: {where}",
            hint="make room there, and run it again",
        ) from exc


def _threads() -> dict[str, str]:
    """How many threads the libraries of linear algebra use: sums depend on it in their last bits."""
    return {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}


def _work_in(folder: Path) -> None:
    """Give the app a working folder of the run's own."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)


def _judge(exc: BaseException, folder: Path | None) -> Report:
    from flq.apps.loader import headline

    match exc:
        case AttemptFenced():
            tell(f"this attempt ends: {exc}", level="WARNING")
            return Report(outcome="fenced", reason=f"ServerApp was fenced: {exc}")
        case Unreachable():
            tell(f"this attempt ends: {exc}", level="ERROR")
            return Report(outcome="lost", reason=f"ServerApp lost its SuperLink: {exc}")
        case SystemExit(code=None | 0):
            return Report(outcome="completed")
        case SystemExit():
            reason = f"ServerApp exited with {exc.code!r}"
        case KeyboardInterrupt():
            reason = "ServerApp was interrupted"
        case AppLoadError() | ProjectError():
            reason = exc.message.partition("\n")[0]
        case _:
            reason = f"ServerApp raised {headline(exc)}"
    error = _told(exc, folder)
    tell(error, level="ERROR")
    return Report(outcome="failed", reason=reason, error=error)


def _told(exc: BaseException, folder: Path | None) -> str:
    """The error for the app's author: the traceback within the app, or what we say of it with our hint."""
    from flq.apps.loader import app_frames

    ours = isinstance(exc, AppLoadError | ProjectError)
    told = str(exc) if ours or folder is None else app_frames(exc, folder)
    hint = exc.hint if isinstance(exc, FlqError) else None
    return f"{told.rstrip()}\nhint: {hint}" if hint else told.rstrip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
