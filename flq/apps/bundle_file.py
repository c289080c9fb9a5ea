"""An app as people name it: by the folder of its project, or by the file of its bundle."""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flq.apps.bundle import MAX_PACKED_BYTES, Packed, pack, unpack
from flq.apps.project import Project, load_project
from flq.errors import BundleError, FlqError, ProjectError
from flq.wire.ids import ObjectHash

SUFFIX = ".flq.zip"

_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9._+!-]")
_SHOWN_DIGITS = 8


def open_app(path: Path) -> tuple[Project, Packed]:
    """The app whose project lies in the folder `path`, or whose bundle is the file `path`.

    Raises `ProjectError` or `BundleError`.
    """
    if path.is_file() or (path.suffix == ".zip" and not path.is_dir()):
        return _read(path)
    project = load_project(path)
    return project, pack(project)


def bundle_name(project: Project, packed: Packed) -> str:
    """The name of a bundle's file: the app, its version, and the first digits of the hash."""
    version = _NO_FILE_NAME.sub("_", project.version)
    return f"{project.name}-{version}-{packed.hash.hex()[:_SHOWN_DIGITS]}{SUFFIX}"


def write_bundle(project: Project, packed: Packed, folder: Path) -> Path:
    """Write a bundle into `folder` and return its file, which is put in its place when it is whole."""
    target = folder / bundle_name(project, packed)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(packed.data)
        draft.replace(target)
    except OSError as exc:
        raise FlqError(f"{target} cannot be written: {exc.strerror}") from exc
    finally:
        with suppress(OSError):
            draft.unlink()
    return target


def _read(file: Path) -> tuple[Project, Packed]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_PACKED_BYTES + 1)
    except OSError as exc:
        raise BundleError(f"the bundle {file} cannot be read: {exc.strerror}") from exc
    hash_ = ObjectHash(hashlib.sha256(data).digest())
    with tempfile.TemporaryDirectory(prefix="flq-") as scratch:
        try:
            folder = unpack(data, hash_, Path(scratch))
            project = load_project(folder)
        except BundleError as exc:
            raise BundleError(f"{file}: {exc.message}", hint=exc.hint) from exc
        except ProjectError as exc:
            raise ProjectError(exc.message.replace(str(Path(scratch) / hash_.hex()), str(file)), hint=exc.hint) from exc
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return replace(project, path=file), Packed(data, hash_, tuple(names))
