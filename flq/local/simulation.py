"""Running apps that are objects of a script, on the embedded federation: the same engine as that of `flq run`.

The processes of an app import it from a bundle, so what is run is the script as it stands on disk: its folder is packed
as a project is, and the script's names of the two apps are the components.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from flq import settings
from flq.apps import ClientApp, ServerApp
from flq.apps.bundle import pack
from flq.apps.project import PROJECT_FILE, Project, load_project
from flq.errors import AppError, UsageError
from flq.link.control import DbControl
from flq.local import federation
from flq.local.person import person
from flq.wire.control import Control
from flq.wire.runs import FeedCursor, RunRow, Submission
from flq.wire.status import Outcome, RunStatus

_SEED_BITS = 31
_WAIT_SECONDS = 0.2
_NAME = "simulation"


def run_simulation(  # noqa: PLR0917 - the order of Flower (flwr), for scripts that give them by position
    server_app: ServerApp,
    client_app: ClientApp,
    num_supernodes: int,
    backend_name: str = "",
    backend_config: Mapping[str, Any] | None = None,
    enable_tf_gpu_growth: bool = False,  # noqa: FBT001, FBT002 - the order of Flower (flwr)
    verbose_logging: bool = False,  # noqa: FBT001, FBT002 - as above
) -> None:
    """Run a ServerApp and a ClientApp on `num_supernodes` nodes of the embedded federation; print what they print.

    Both must be global names of the script that calls this, or of a module beside it, and the call must stand below
    `if __name__ == "__main__":`, since the processes of the app import that script. The federation is started if it is
    not up, hosts as many nodes as are needed, and stays up; `flq ls` shows the run.

    Parameters
    ----------
    server_app, client_app
        The app.
    num_supernodes
        How many nodes the run gets.
    backend_name, backend_config, enable_tf_gpu_growth
        For calls that name a backend of Flower (flwr); there is one engine here, and it takes no settings.
    verbose_logging
        Print what is only logged for details, too.

    Raises
    ------
    UsageError
        If an app has no name that a process could import, or there are no nodes.
    AppError
        If the run fails, or the call does not stand where it must.

    """
    del backend_name, backend_config, enable_tf_gpu_growth
    if _imported_by_app():
        raise AppError(
            "run_simulation is called while the processes of its run import the script",
            hint='let the call stand below `if __name__ == "__main__":`',
        )
    if num_supernodes < 1:
        raise UsageError(f"num_supernodes is {num_supernodes}; a simulation has at least one")
    bundle = _bundle(_component(server_app, "server_app"), _component(client_app, "client_app"))
    home = settings.load().home
    addresses, _ = federation.ensure(home, nodes=num_supernodes, progress=lambda text: _say(text, sys.stderr))
    with closing(DbControl(addresses.dsn)) as door:
        names = [node.name for node in door.nodes() if node.online][:num_supernodes]
        submission = Submission(
            app=_NAME,
            bundle=bundle,
            config={},
            owner=person(),
            idempotency_key=uuid.uuid4().hex,
            seed=secrets.randbits(_SEED_BITS),
            select=tuple(names),
            min_nodes=num_supernodes,
        )
        row = _follow(door, door.submit(submission), verbose=verbose_logging)
    if row.outcome is not Outcome.COMPLETED:
        raise AppError(f"the simulation {row.name} has {row.outcome}: {row.reason}", hint=f"flq logs {row.name}")


def _imported_by_app() -> bool:
    """Whether this is a process of an app, which has imported the script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith(("flq.exec.", "flq.node."))


def _component(app: ServerApp | ClientApp, argument: str) -> tuple[Path, str]:
    """The folder of the script or module that has `app` among its global names, and `module:name`."""
    main = sys.modules["__main__"]
    for module in (main, *(module for name, module in tuple(sys.modules.items()) if name != "__main__")):
        name = _name_in(module, app)
        file = getattr(module, "__file__", None)
        if name is not None and file is not None:
            return _place(module, Path(file).resolve(), name)
    raise UsageError(
        f"{argument} is no global name of a script or module",
        hint="the processes of a run import the app: write it into a file, and give it a name there",
    )


def _name_in(module: ModuleType, app: object) -> str | None:
    names = vars(module)
    return next((name for name in names if names[name] is app), None)


def _place(module: ModuleType, file: Path, name: str) -> tuple[Path, str]:
    if module.__name__ == "__main__" or "." not in module.__name__:
        return file.parent, f"{file.stem}:{name}"
    depth = module.__name__.count(".") + (file.stem == "__init__")
    return file.parents[depth], f"{module.__name__}:{name}"


def _bundle(server: tuple[Path, str], client: tuple[Path, str]) -> bytes:
    """The folder with the apps, packed as a project."""
    folder = server[0]
    if client[0] != folder:
        raise UsageError(f"the apps stand in {folder} and {client[0]}", hint="put them into one folder")
    project = Project(
        path=folder, name=_NAME, version="0", serverapp=server[1], clientapp=client[1], config={}, dependencies=()
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in pack(project).files:
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        (Path(scratch) / PROJECT_FILE).write_text(_project_file(project), encoding="utf-8")
        return pack(load_project(Path(scratch))).data


def _project_file(project: Project) -> str:
    return (
        f'[project]\nname = "{project.name}"\nversion = "{project.version}"\n\n[tool.flq]\nflwr-alias = true\n\n'
        f"[tool.flq.app]\nserverapp = {json.dumps(project.serverapp)}\nclientapp = {json.dumps(project.clientapp)}\n"
    )


def _follow(door: Control, row: RunRow, *, verbose: bool) -> RunRow:
    """Print what the run and its nodes print until it has ended."""
    cursor = FeedCursor()
    while True:
        row = door.run(row.name)  # before its log: what a finished run has printed is there by then
        while (page := door.logs(row.name, cursor)).lines:
            cursor = page.cursor
            for line in page.lines:
                if verbose or line.level != "DEBUG":
                    _say(line.text if line.source == "serverapp" else f"[{line.source}] {line.text}", sys.stdout)
        if row.status is RunStatus.FINISHED:
            return row
        door.wait(_WAIT_SECONDS)


def _say(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")
    stream.flush()
