"""Who Postgres runs as: it refuses to be root.

An ordinary user's Postgres runs as that user. Root's runs as `nobody` if that user can reach the home and the
programs. Below a closed folder, such as root's own home, it runs in a user namespace, where root's own files
belong to a user with another number: nothing has to be copied, given away or opened for others. Some containers
refuse user namespaces, but a container's folders are usually open.

Which way works is tried rather than worked out from permissions: by a forked process that becomes the identity
and looks whether it can reach what it needs.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flq.errors import ServerFailed

_CLONE_NEWUSER = 0x10000000
_NOBODY = 65534
_CLOSED = 255  # no errno


@dataclass(frozen=True, slots=True)
class Identity:
    """A way to run a server: as this process's user, as another user, or in a user namespace."""

    mode: Literal["self", "setuid", "userns"] = "self"
    uid: int = -1
    gid: int = -1

    @property
    def owner(self) -> tuple[int, int]:
        """Uid and gid that the server's files must have, seen from here."""
        return (self.uid, self.gid) if self.mode == "setuid" else (os.geteuid(), os.getegid())

    def own(self, path: Path) -> None:
        """Give `path` to the identity, and if it is a folder all that is in it, unless it has it already.

        Data that was written in one mode is thus usable in the other, as when root's home is opened to others.
        """
        owner = self.owner
        if os.geteuid() != 0 or path.lstat().st_uid == owner[0]:
            return
        for folder, folders, files in os.walk(path):
            for name in (*folders, *files):
                os.chown(Path(folder, name), *owner, follow_symlinks=False)
        os.chown(path, *owner, follow_symlinks=False)

    def enter(self) -> None:
        """Become the identity. For a forked process; raises `OSError` if the system refuses."""
        if self.mode == "setuid":
            os.setgroups([])
            os.setgid(self.gid)
            os.setuid(self.uid)
        elif self.mode == "userns":
            self._enter_namespace()

    def _enter_namespace(self) -> None:
        uid, gid = os.geteuid(), os.getegid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWUSER) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        for name, value in (
            ("setgroups", "deny"),
            ("uid_map", f"{self.uid} {uid} 1"),
            ("gid_map", f"{self.gid} {gid} 1"),
        ):
            Path("/proc/self", name).write_text(value, encoding="ascii")


SELF = Identity()


def for_postgres(home: Path, programs: Path) -> Identity:
    """The identity for a Postgres with its data below `home`. Raises `ServerFailed` if there is none.

    Forks, so it is for a process without threads.
    """
    if os.geteuid() != 0:
        return SELF
    uid, gid = _nobody()
    problems = []
    for identity in (Identity("setuid", uid, gid), Identity("userns", uid, gid)):
        problem = _try(identity, (home, programs / "postgres"))
        if problem is None:
            return identity
        problems.append(problem)
    as_nobody, in_namespace = problems
    raise ServerFailed(
        f"PostgreSQL does not run as root; as user nobody: {as_nobody}; in a user namespace: {in_namespace}",
        hint=_way_out(home, programs),
    )


def _nobody() -> tuple[int, int]:
    import pwd

    try:
        found = pwd.getpwnam("nobody")
    except KeyError:
        return _NOBODY, _NOBODY
    return found.pw_uid, found.pw_gid


def _try(identity: Identity, paths: Sequence[Path]) -> str | None:
    """What stands against running as `identity`, or None if nothing does."""
    if identity.mode == "userns" and sys.platform != "linux":
        return "there are none on this system"
    pid = os.fork()
    if pid == 0:
        code = _CLOSED
        try:
            code = _tried(identity, paths)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return None
    return f"{_first_closed(paths)} is closed to others" if code == _CLOSED else os.strerror(code)


def _tried(identity: Identity, paths: Sequence[Path]) -> int:
    try:
        identity.enter()
        return 0 if all(os.access(path, os.X_OK) for path in paths) else _CLOSED
    except OSError as exc:
        return exc.errno or _CLOSED


def _first_closed(paths: Sequence[Path]) -> Path:
    folders = [folder for path in paths for folder in (*reversed(path.parents), path)]
    return next((folder for folder in folders if not folder.stat().st_mode & 0o001), paths[0])


def _way_out(home: Path, programs: Path) -> str:
    if _first_closed([programs, home]) in (programs, *programs.parents):
        return f"run flq as an ordinary user, or install it where others can read it: PostgreSQL is in {programs}"
    return "set FLQ_HOME to a folder below one that others can pass, such as /var/lib/flq, or run as an ordinary user"
