"""`flq pull`: fetch what a run has stored."""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import click

from flq.cli.federation import control, federated, find
from flq.cli.options import examples, json_option, run_argument
from flq.cli.output import print_json, size
from flq.errors import ArtifactUnknown, DiskFull, FlqError, LocalError
from flq.settings import Settings
from flq.wire import mapped
from flq.wire.control import Control
from flq.wire.runs import ArtifactRow


@click.command(
    "pull",
    epilog=examples("flq pull brave-otter", "flq pull brave-otter model.npz -o results --force"),
)
@run_argument
@click.argument("name", required=False)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to [default: ./RUN]."
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
@json_option
@federated
def command(*, settings: Settings, run: str, name: str | None, output: Path | None, force: bool, as_json: bool) -> None:
    """Fetch the artifacts of a run: all, or the one called NAME.

    A file is written under another name first, verified, and then put in its place: there is never half a file.
    """
    with control(find(settings)) as door:
        row = door.run(run)
        wanted = _wanted(door.artifacts(run), run=row.name, name=name)
        folder = output or Path(row.name)
        targets = [(artifact, _target(folder, artifact.name)) for artifact in wanted]
        if not force:
            _refuse_to_overwrite(target for _, target in targets)
        with _progress(sum(artifact.size for artifact in wanted)) as advance:
            for artifact, target in targets:
                _fetch(door, row.name, artifact, target, force=force)
                advance(artifact.size)
    if as_json:
        print_json([{"name": found.name, "path": str(target), "size": found.size} for found, target in targets])
        return
    for _, target in targets:
        click.echo(str(target))


def _wanted(artifacts: list[ArtifactRow], *, run: str, name: str | None) -> list[ArtifactRow]:
    found = [artifact for artifact in artifacts if name is None or artifact.name == name]
    if found:
        return found
    if name is None:
        raise ArtifactUnknown(f"run {run} has stored no artifacts")
    known = ", ".join(artifact.name for artifact in artifacts)
    raise ArtifactUnknown(f"run {run} has no artifact {name!r}", hint=f"it has {known}" if known else None)


def _target(folder: Path, name: str) -> Path:
    """Where an artifact goes: its name comes from an app, and must not lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise FlqError(f"the artifact {name!r} has a name that leads out of the folder")
    return folder.joinpath(*parts)


def _refuse_to_overwrite(targets: Iterable[Path]) -> None:
    for target in targets:
        if target.exists():
            raise _exists(target)


def _exists(target: Path) -> FlqError:
    return FlqError(f"{target} exists", hint="overwrite it with --force, or choose another folder with -o")


def _fetch(door: Control, run: str, artifact: ArtifactRow, target: Path, *, force: bool) -> None:
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    made = not target.parent.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fill(door, run, artifact, draft)
        if force:
            draft.replace(target)
        else:
            os.link(draft, target)  # unlike a rename this never replaces a file that has just come into being
    except FileExistsError as exc:
        raise _exists(target) from exc
    except OSError as exc:
        raise _unwritable(target, artifact.size, exc) from exc
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if made:
            with suppress(OSError):  # there is something in it, or it was not made
                target.parent.rmdir()


def _unwritable(target: Path, length: int, exc: OSError) -> LocalError:
    kind = DiskFull if exc.errno in {errno.ENOSPC, errno.EDQUOT} else LocalError
    return kind(
        f"{target} ({size(length)}) cannot be written: {exc.strerror}",
        hint="make room there, or choose another folder with -o",
    )


def _fill(door: Control, run: str, artifact: ArtifactRow, draft: Path) -> None:
    with draft.open("x+b") as file:
        if artifact.size:
            door.artifact(run, artifact.name, mapped.writable(file, artifact.size))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    with click.progressbar(length=max(total, 1), label=size(total), file=sys.stderr) as bar:
        advance: Callable[[int], None] = bar.update
        yield advance
