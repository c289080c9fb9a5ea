"""Which federation a command speaks to, and the options that say so."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flq import settings as flq_settings
from flq.cli.output import note
from flq.errors import DiskFull, LocalError, Unreachable, UsageError
from flq.settings import Settings

if TYPE_CHECKING:
    from flq.wire.control import Control

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a federation is. The addresses may hold passwords."""

    dsn: str = field(repr=False)
    broker: str | None = field(default=None, repr=False)

    def needs_broker(self) -> str:
        """The Celery broker's address. Raises `UsageError` if there is none."""
        if self.broker is None:
            raise UsageError("this federation has no Celery broker", hint="set FLQ_BROKER, or `broker` in config.toml")
        return self.broker


def federated(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options `--federation` and `--home`; it gets `settings` in their place.

    `[tool.flq]` is that of the project that the command names with `app`, else of the current folder.
    """

    @click.option("--federation", metavar="NAME", help="A federation of config.toml, or 'embedded'.")
    @click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of the embedded federation and of config.toml [default: $FLQ_HOME, else ~/.flq].",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, federation: str | None, home: Path | None, **options: Any) -> R:
        project = _project_table(options.get("app") or Path())
        settings = flq_settings.load(home=home, federation=federation, project=project)
        with _explained(settings):
            return command(*args, settings=settings, **options)

    return wrapper


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Say what the embedded federation suffers from, if that is why something does not work."""
    try:
        yield
    except (Unreachable, LocalError) as exc:
        if settings.embedded and not isinstance(exc, DiskFull):
            exc.hint = _suffering(settings.home) or exc.hint
        raise


def _suffering(home: Path) -> str | None:
    from flq.local import federation as embedded
    from flq.local import room

    shortage = room.shortage(home)
    if shortage is not None:
        return shortage
    ill = [found for found in embedded.status(home).processes if found.state in {"restarting", "failed"}]
    return f"{ill[0].name} is {ill[0].state}; its log is {ill[0].log}" if ill else None


def find(settings: Settings) -> Place:
    """Where the federation is. Raises `Unreachable` if it is the embedded one and is not up."""
    if settings.dsn is not None:
        return Place(settings.dsn, settings.broker)
    from flq.local import federation as embedded

    addresses = embedded.addresses(settings.home)
    if addresses is None:
        raise Unreachable(f"there is no federation below {settings.home}", hint="start one: flq up")
    return Place(addresses.dsn, addresses.broker)


def find_or_start(settings: Settings, *, nodes: int | None) -> Place:
    """The same, but the embedded federation is started if it is not up, and grown to `nodes` nodes; it stays up."""
    if settings.dsn is not None:
        return Place(settings.dsn, settings.broker)
    from flq.local import federation as embedded

    if not embedded.status(settings.home).running:
        note(f"starting a federation below {settings.home}; it stays up until: flq down")
    addresses, _ = embedded.ensure(settings.home, nodes=nodes, progress=note)
    return Place(addresses.dsn, addresses.broker)


def control(place: Place) -> closing[Control]:
    """The door for people, as a context that closes it. Raises `DatabaseUnreachable` or `SchemaError`."""
    from flq.link.control import DbControl

    return closing(DbControl(place.dsn))


def _project_table(folder: Path) -> dict[str, Any]:
    """`[tool.flq]` of a project, if there is one; what is wrong with it is said where it matters."""
    try:
        content = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    table = content.get("tool", {}).get("flq", {})
    return table if isinstance(table, dict) else {}
