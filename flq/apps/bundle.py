"""Bundles: an app project as one content-addressed zip archive.

The same files always give the same bundle: entries are sorted, dates fixed. What cannot be trusted is refused before
anything is written: links, paths that lead out of the folder, and archives that are larger than they may be.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flq.apps.patterns import Patterns, compile_patterns
from flq.apps.project import PROJECT_FILE, Project
from flq.errors import BundleError
from flq.wire.ids import ObjectHash

MAX_PACKED_BYTES = 10 << 20
MAX_UNPACKED_BYTES = 200 << 20
MAX_FILES = 5_000
MAX_DEPTH = 10
MAX_PATH_BYTES = 512
MAX_RATIO = 200
"""How much larger a file may be than its packed form, beyond the first mebibyte."""

DEFAULT_INCLUDE = ("*.py", "*.toml", "*.md", "*.yaml", "*.yml", "*.json", "*.jsonl", "LICENSE")
DEFAULT_EXCLUDE = (
    ".*",
    "__pycache__/",
    "*.pyc",
    "/tests/",
    "/test/",
    "test_*.py",
    "*_test.py",
    "conftest.py",
    "/venv/",
    "/env/",
    "/build/",
    "/dist/",
    "*.egg-info/",
    "node_modules/",
)

_DATE = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o644
_BLOCK = 1 << 16
_SHOWN = 3
_RATIO_FREE_BYTES = 1 << 20
_ENTRY_NAME = re.compile(r"[^\x00-\x1f\x7f\\:]+")
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed project: the archive, its sha256, and the files in it."""

    data: bytes
    hash: ObjectHash
    files: tuple[str, ...]


def pack(project: Project, *, max_bytes: int = MAX_PACKED_BYTES) -> Packed:
    """Pack a project.

    In it are source code and text (`DEFAULT_INCLUDE`) and what the project includes, without what it excludes,
    what its .gitignore names, tests, builds, environments and hidden files. Raises `BundleError` for links and
    special files, and if the bundle becomes too large.
    """
    files = sorted(_chosen(project))
    if len(files) > MAX_FILES:
        raise BundleError(
            f"the project has {len(files)} files to pack; at most {MAX_FILES} are possible", hint=_EXCLUDE
        )
    file = io.BytesIO()
    left = MAX_UNPACKED_BYTES
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in files:
            content = _content(project.path / name)
            left -= len(content)
            if left < 0:
                raise _too_large("the files to pack are", MAX_UNPACKED_BYTES, project, files)
            if file.tell() > max_bytes:
                raise _too_large("the bundle is", max_bytes, project, files)
            archive.writestr(_entry(name), content)
    data = file.getvalue()
    if len(data) > max_bytes:
        raise _too_large("the bundle is", max_bytes, project, files)
    return Packed(data, ObjectHash(hashlib.sha256(data).digest()), tuple(files))


_EXCLUDE = "leave some out with [tool.flq.app] exclude"
_BUILD = "flq build makes bundles that flq accepts; trust one only if you know where it comes from"
_LEAVE_OUT = "leave it out with [tool.flq.app] exclude"


def _too_large(what: str, limit: int, project: Project, files: list[str]) -> BundleError:
    sizes = {name: (project.path / name).stat().st_size for name in files}
    largest = sorted(files, key=lambda name: -sizes[name])[:_SHOWN]
    told = ", ".join(f"{name} ({sizes[name] / (1 << 20):.1f} MB)" for name in largest)
    return BundleError(
        f"{what} larger than {limit >> 20} MB; the largest files are {told}",
        hint=f"{_EXCLUDE}; data belongs onto the nodes",
    )


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix, wherever it is packed
    entry.external_attr = (stat.S_IFREG | _FILE_MODE) << 16
    return entry


def _content(path: Path) -> bytes:
    try:
        # a file that became a link meanwhile is not followed
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return file.read(MAX_UNPACKED_BYTES + 1)
    except OSError as exc:
        raise BundleError(f"{path} cannot be packed: {exc.strerror}", hint=_LEAVE_OUT) from exc


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which files of a project belong into its bundle."""

    default: Patterns
    include: Patterns
    include_lines: tuple[str, ...]
    exclude: Patterns
    left_out: Patterns
    ignored: Patterns

    def file(self, path: str) -> bool:
        if self.exclude.match_below(path):
            return False
        if path == PROJECT_FILE or self.include.match_below(path):
            return True
        return self.default.match(path, folder=False) and not self._left_out(path, folder=False)

    def folder(self, path: str) -> bool:
        """Whether to look into a folder; one that is left out is looked into if it is included by its path."""
        if self.exclude.match(path, folder=True):
            return False
        if any(line.lstrip("/").startswith(f"{path}/") for line in self.include_lines):
            return True
        return self.include.match_below(f"{path}/") or not self._left_out(path, folder=True)

    def _left_out(self, path: str, *, folder: bool) -> bool:
        if folder:
            return self.left_out.match(path, folder=True) or self.ignored.match(path, folder=True)
        return self.left_out.match_below(path) or self.ignored.match_below(path)


def _choice(project: Project) -> _Choice:
    ignore_file = project.path / ".gitignore"
    try:
        ignored = ignore_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        ignored = []
    return _Choice(
        default=compile_patterns(DEFAULT_INCLUDE),
        include=compile_patterns(project.include),
        include_lines=project.include,
        exclude=compile_patterns(project.exclude),
        left_out=compile_patterns(DEFAULT_EXCLUDE),
        ignored=compile_patterns(ignored),
    )


def _chosen(project: Project) -> Iterator[str]:
    """The names of the files to pack, relative and with slashes."""
    choice = _choice(project)
    for name, entry in _walk(project.path, "", choice):
        _check_name(name, f"{project.path / name} cannot be packed", hint=f"rename it, or {_LEAVE_OUT}")
        if not entry.is_file(follow_symlinks=False):
            linked = entry.is_symlink()
            kind = "a link" if linked else "no regular file"
            hint = f"put a copy in its place, or {_LEAVE_OUT}" if linked else _LEAVE_OUT
            raise BundleError(f"{project.path / name} is {kind}, which cannot be packed", hint=hint)
        yield name


def _walk(root: Path, below: str, choice: _Choice) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(root / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{below}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                if choice.folder(name):
                    yield from _walk(root, f"{name}/", choice)
            elif choice.folder(name) if entry.is_dir() else choice.file(name):
                yield name, entry


def _check_name(name: str, what: str, *, hint: str | None = None) -> None:
    """Refuse names that do not mean the same file on every system, or lead out of the folder."""
    parts = name.split("/")
    if not _ENTRY_NAME.fullmatch(name) or any(part in ("", ".", "..") for part in parts):
        raise BundleError(f"{what}: its name {name!r} is not allowed", hint=hint)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BundleError(f"{what}: its name {name!r} is not UTF-8", hint=hint) from None
    if len(parts) > MAX_DEPTH or size > MAX_PATH_BYTES:
        raise BundleError(f"{what}: it lies more than {MAX_DEPTH} levels deep or has too long a name", hint=hint)


def unpack(data: bytes, expected_hash: ObjectHash, into: Path) -> Path:
    """Unpack a bundle below `into` and return its folder, which is named by the hash.

    A folder that is there already and holds these files is used again. Several processes may unpack the same bundle at
    the same time. Raises `BundleError` if the bundle is not the one that is expected, or cannot be trusted.
    """
    if len(data) > MAX_PACKED_BYTES:
        raise BundleError(f"the bundle has {len(data)} bytes; at most {MAX_PACKED_BYTES} are possible")
    if hashlib.sha256(data).digest() != expected_hash:
        raise BundleError("the bundle is not the one that was submitted: its hash is another")
    target = into / expected_hash.hex()
    with _archive(data) as archive:
        entries = _checked_entries(archive)
        if _holds(target, entries):
            return target
        into.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name[:12]}-", dir=into))
        try:
            _extract(archive, entries, folder)
            _put_in_place(folder, target, entries)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


@contextlib.contextmanager
def _archive(data: bytes) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except _BROKEN as exc:
        raise BundleError(f"the bundle is no archive: {exc}") from exc
    with archive:
        yield archive


def _checked_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_FILES:
        raise BundleError(f"the bundle has {len(entries)} files; at most {MAX_FILES} are possible")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
        raise BundleError(f"the bundle unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    for entry in entries:
        _check_entry(entry)
    _check_distinct([entry.filename for entry in entries])
    return entries


def _check_entry(entry: zipfile.ZipInfo) -> None:
    what = f"the bundle's entry {entry.filename!r} is refused"
    _check_name(entry.orig_filename, what, hint=_BUILD)
    mode = entry.external_attr >> 16
    if entry.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        raise BundleError(f"{what}: it is no regular file", hint=_BUILD)
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{what}: it is encrypted or compressed in an unknown way", hint=_BUILD)
    if entry.file_size > _RATIO_FREE_BYTES + MAX_RATIO * entry.compress_size:
        raise BundleError(f"{what}: it is packed more tightly than a file of an app can be", hint=_BUILD)


def _check_distinct(names: list[str]) -> None:
    """Refuse two entries for one file, or a file where another entry needs a folder; also where case does not count."""
    folded = [name.casefold() for name in names]
    folders = {folder for name in folded for folder in _folders(name)}
    if len(set(folded)) != len(folded) or not folders.isdisjoint(folded):
        raise BundleError("the bundle has two entries for one place")


def _folders(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))


def _extract(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path) -> None:
    for entry in entries:
        path = folder / entry.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(entry) as source, path.open("xb") as copy:
                written = 0
                while block := source.read(_BLOCK):
                    written += len(block)
                    if written > entry.file_size:  # the sum of these sizes has been checked
                        raise BundleError(f"the bundle's entry {entry.filename!r} is larger than it says")
                    copy.write(block)
        except _BROKEN as exc:
            raise BundleError(f"the bundle's entry {entry.filename!r} cannot be unpacked: {exc}") from exc
        path.chmod(_FILE_MODE)


def _holds(target: Path, entries: list[zipfile.ZipInfo]) -> bool:
    """Whether `target` holds these files; a crash of the host may have left half of them."""
    return target.is_dir() and all(_same(target / entry.filename, entry) for entry in entries)


def _same(path: Path, entry: zipfile.ZipInfo) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return len(content) == entry.file_size and zlib.crc32(content) == entry.CRC


def _put_in_place(folder: Path, target: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Rename `folder` to `target`; whoever comes second uses what is there."""
    folder.chmod(0o755)
    for _ in range(2):
        with contextlib.suppress(OSError):
            folder.rename(target)
            return
        if _holds(target, entries):
            return
        # What is there is damaged: it is moved out of the way, not deleted under a process that reads it.
        with contextlib.suppress(OSError):
            target.rename(folder.with_name(f"{folder.name}.damaged"))
    raise BundleError(f"{target} cannot be made")
