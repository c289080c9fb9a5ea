"""The command `flq`: a lazy group of commands, and the border where errors become messages and exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

import flq
from flq.cli.options import examples
from flq.cli.output import Failure, print_failure
from flq.errors import DiskFull, FlqError, Interrupted, LocalError

SECTIONS = {
    "Apps": ("new", "app", "build"),
    "Runs": ("run", "ls", "show", "explain", "logs", "stop", "resume", "fork", "rerun", "pull"),
    "Federation": ("up", "down", "status", "nodes", "sql", "monitor", "verify", "prune"),
    "Servers": ("superlink", "superexec", "supernode", "db"),
}
"""The commands as `flq --help` lists them. Each is `command` of the module of its name."""


class Commands(click.Group):
    """Imports a command when it is needed, and turns what goes wrong into a message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names of all commands."""
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        found = import_module(f"flq.cli.{cmd_name}").command
        assert isinstance(found, click.Command)  # noqa: S101 - a mistake in this package
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section."""
        for title, names in SECTIONS.items():
            found = ((name, self.get_command(ctx, name)) for name in names)
            rows = [(name, command.get_short_help_str(90)) for name, command in found if command is not None]
            with formatter.section(title):
                formatter.write_dl(rows)

    def main(self, args: Sequence[str] | None = None, **options: Any) -> NoReturn:  # type: ignore[override]
        """Run a command and exit with its code."""
        arguments = list(sys.argv[1:] if args is None else args)
        options["standalone_mode"] = False
        sys.exit(guarded(lambda: super(Commands, self).main(arguments, **options), as_json="--json" in arguments))


def guarded(command: Callable[[], object], *, as_json: bool) -> int:
    """Run `command`; returns the exit code. An error that flq does not know is a bug, and its traceback is shown."""
    try:
        answer = command()
    except FlqError as exc:
        print_failure(Failure(exc.code, exc.message, exc.hint), as_json=as_json)
        return exc.exit_code
    except click.ClickException as exc:
        print_failure(_usage_failure(exc), as_json=as_json)
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        print_failure(Failure(Interrupted.code, "interrupted"), as_json=as_json)
        return Interrupted.exit_code
    except OSError as exc:
        if exc.errno not in _OF_THE_MACHINE:
            raise
        print_failure(_of_the_machine(exc), as_json=as_json)
        return LocalError.exit_code
    return answer if isinstance(answer, int) else 0


def _of_the_machine(exc: OSError) -> Failure:
    """What the machine refuses is no bug: a full disk, a folder that belongs to somebody else."""
    where = f"{exc.filename}: " if exc.filename else ""
    full = exc.errno in _FULL
    hint = "make room on that disk, then try again" if full else "choose a place that you may use"
    return Failure(DiskFull.code if full else LocalError.code, f"{where}{exc.strerror}", hint)


_FULL = {errno.ENOSPC, errno.EDQUOT}
_OF_THE_MACHINE = _FULL | {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.ENAMETOOLONG}


def _usage_failure(exc: click.ClickException) -> Failure:
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    if isinstance(exc, click.exceptions.NoArgsIsHelpError) or context is None:
        return Failure("usage", exc.format_message())
    return Failure("usage", exc.format_message(), f"{context.command_path} --help")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "flq run                     run the app in this folder; starts a federation if there is none",
        "flq run --stream            the same, with progress and output",
        "flq ls                      what ran, what runs, what waits",
        'flq sql "select * from runs"',
    ),
)
@click.version_option(flq.__version__, prog_name="flq", message="%(prog)s %(version)s")
def main() -> None:
    """Federated learning whose whole state lives in PostgreSQL.

    Commands that answer take --json. Exit codes: 0 ok; 1 the run failed, a check found something or the command
    could not do its work; 2 usage; 3 --timeout passed; 4 not allowed; 5 unreachable; 130 interrupted.
    """
