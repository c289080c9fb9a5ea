"""Where the embedded federation keeps its things below `$FLQ_HOME`.

    lock                the supervisor's flock; its text is the supervisor's pid
    federation.json     what the supervisor last said of itself
    supervisor.log      its log; those of the processes are in log/
    pg/  valkey/        the data
    run/                sockets: run/pg/.s.PGSQL.5432, run/valkey.sock, run/control.sock

The path of a Unix socket may be 107 bytes long (103 on macOS). Below a home with a long path the sockets are
therefore in a folder of the temp dir, whose name is made from the home's path.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from flq.errors import LocalError
from flq.local.state import Addresses
from flq.settings import POSTGRES_PORT

DATABASE = "flq"
USER = "flq"
LONGEST_SOCKET = 90
LOG_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one embedded federation."""

    home: Path
    run: Path
    port: int = POSTGRES_PORT

    @property
    def lock(self) -> Path:
        """The file that the supervisor holds a flock on for as long as it lives."""
        return self.home / "lock"

    @property
    def state(self) -> Path:
        """The supervisor's last word about itself."""
        return self.home / "federation.json"

    @property
    def supervisor_log(self) -> Path:
        """Where the supervisor writes."""
        return self.home / "supervisor.log"

    @property
    def control(self) -> Path:
        """The socket at which the supervisor takes requests."""
        return self.run / "control.sock"

    @property
    def pg_data(self) -> Path:
        """The data folder of Postgres."""
        return self.home / "pg"

    @property
    def pg_run(self) -> Path:
        """The folder of Postgres's socket; it belongs to the user that Postgres runs as."""
        return self.run / "pg"

    @property
    def valkey_data(self) -> Path:
        """The data folder of Valkey."""
        return self.home / "valkey"

    @property
    def valkey_socket(self) -> Path:
        """The socket of Valkey."""
        return self.run / "valkey.sock"

    @property
    def addresses(self) -> Addresses:
        """Where clients find the two servers."""
        port = "" if self.port == POSTGRES_PORT else f" port={self.port}"
        return Addresses(
            dsn=f"host={_conninfo_value(str(self.pg_run))}{port} user={USER} dbname={DATABASE}",
            broker=f"redis+socket://{quote(str(self.valkey_socket))}",
        )

    def log(self, name: str) -> Path:
        """The log of the process called `name`."""
        return self.home / "log" / f"{name}.log"


def locate(home: Path) -> Layout:
    """The layout of the embedded federation below `home`; creates nothing."""
    home = Path(os.path.abspath(home.expanduser()))  # noqa: PTH100 - resolve() would follow links
    run = home / "run"
    if len(os.fsencode(run / "pg" / ".s.PGSQL.5432")) > LONGEST_SOCKET:
        run = _short_run(home)
    return Layout(home=home, run=run)


def make_home(layout: Layout) -> None:
    """Create the home if it is not there. Raises `LocalError` if it cannot be created or written to.

    A home of root is made passable for others, since Postgres runs as another user there; what is inside it
    is closed.
    """
    try:
        layout.home.mkdir(parents=True, exist_ok=True, mode=_passable())
    except FileExistsError as exc:
        raise LocalError(f"{layout.home} cannot be created: a file has that name", hint=_HOME_HINT) from exc
    except OSError as exc:
        raise LocalError(f"{layout.home} cannot be created: {exc.strerror}", hint=_HOME_HINT) from exc
    if not os.access(layout.home, os.W_OK | os.X_OK):
        raise LocalError(f"{layout.home} cannot be written to", hint=_HOME_HINT)


def make_folders(layout: Layout) -> None:
    """Create the folders of logs and sockets. Raises `LocalError` if the sockets' folder is not ours."""
    for folder, mode in ((layout.log("any").parent, 0o700), (layout.run, _passable())):
        try:
            folder.mkdir(exist_ok=True, mode=mode)
        except OSError as exc:
            raise LocalError(f"{folder} cannot be created: {exc.strerror}", hint=_HOME_HINT) from exc
    if layout.run.parent != layout.home and not _is_ours(layout.run):
        raise LocalError(f"{layout.run} belongs to somebody else", hint="remove it, or set FLQ_HOME to a shorter path")


def clean_up(layout: Layout) -> None:
    """Remove the sockets' folder if it is ours, but not in the home: nobody else would."""
    if layout.run.parent != layout.home and _is_ours(layout.run):
        shutil.rmtree(layout.run, ignore_errors=True)


def rotate(log: Path) -> None:
    """Put a log that has grown large aside, in place of the one that was put aside before."""
    try:
        if log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
    except FileNotFoundError:
        pass


_HOME_HINT = "set FLQ_HOME to a folder that you may write to"


def _passable() -> int:
    return 0o711 if os.geteuid() == 0 else 0o700


def _short_run(home: Path) -> Path:
    # only long paths need these, and the supervisor stays small without them
    import hashlib
    import tempfile

    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return Path(tempfile.gettempdir(), f"flq-{os.geteuid()}-{name}")


def _is_ours(folder: Path) -> bool:
    """Whether we made a folder in a shared place; not if somebody did it for us, or by way of a link."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _conninfo_value(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'" if escaped != value or " " in value else value
