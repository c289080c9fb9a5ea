from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flq.cli.main import SECTIONS, guarded, main
from flq.errors import DatabaseUnreachable, FlqError, NotAllowed, ProjectError, TimeoutPassed

REFERENCE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = [name for names in SECTIONS.values() for name in names]
HEAVY = {"numpy", "psycopg", "sqlalchemy", "celery", "kombu", "rich", "alembic", "redis"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_examples_and_a_section_in_the_reference(name: str):
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert command.help
    assert "Examples:" in (command.epilog or "")
    text = REFERENCE.read_text(encoding="utf-8")
    assert f"\n## flq {name}\n" in text
    section = text.split(f"\n## flq {name}\n")[1].split("\n## ")[0]
    for option in _options(command):
        assert option in section, f"docs/cli.md says nothing of {option} in the section of flq {name}"


def _options(command: click.Command) -> list[str]:
    common = {"--help", "--json", "--home", "--federation"}  # told once, at the top of the reference
    return [
        max(parameter.opts, key=len)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not common & set(parameter.opts)
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help(name: str):
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert f"Usage: main {name}" in result.stdout


def test_help_and_the_version_import_nothing_heavy():
    code = (
        "import sys\nfrom flq.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Federation:" in done.stdout


def test_the_version():
    result = CliRunner().invoke(main, ["--version"])
    assert (result.exit_code, result.stdout.split()[0]) == (0, "flq")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "No such command"),
        (["ls", "--nonsense"], "No such option"),
        (["ls", "--limit", "none"], "not a valid integer"),
        (["show"], "Missing argument"),
    ],
)
def test_a_wrong_command_line_is_usage(arguments: list[str], told: str):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_with_json_a_wrong_command_line_is_an_envelope():
    result = CliRunner().invoke(main, ["show", "--json"])
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert (answer["status"], answer["data"], answer["error"]["code"]) == ("error", None, "usage")
    assert answer["error"]["hint"].endswith("show --help")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FlqError("it failed", hint="try again"), 1),
        (ProjectError("no project"), 2),
        (TimeoutPassed(), 3),
        (NotAllowed(), 4),
        (DatabaseUnreachable("gone"), 5),
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
    ],
)
def test_errors_become_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise error

    assert guarded(fail, as_json=False) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert guarded(fail, as_json=True) == code
    told = capsys.readouterr()
    assert told.err == ""
    assert json.loads(told.out)["status"] == "error"


def test_a_hint_stands_below_the_message(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise FlqError("it failed", hint="try again")

    guarded(fail, as_json=False)
    assert capsys.readouterr().err == "error: it failed\nhint: try again\n"


def test_what_the_machine_refuses_is_no_bug(capsys: pytest.CaptureFixture[str]):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/model.npz")

    assert guarded(fail, as_json=True) == 1
    answer = json.loads(capsys.readouterr().out)["error"]
    assert answer == {
        "code": "disk_full",
        "message": "/data/model.npz: No space left on device",
        "hint": "make room on that disk, then try again",
    }


def test_a_bug_keeps_its_traceback():
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(fail, as_json=False)


def test_a_closed_pipe_is_no_traceback(tmp_path: Path):
    command = f"{sys.executable} -m flq --help | true; {sys.executable} -m flq sql --views | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
