"""`flq build`: an app as one file."""

from __future__ import annotations

from pathlib import Path

import click

from flq.cli.options import examples, json_option
from flq.cli.output import print_json


@click.command(
    "build",
    epilog=examples("flq build", "flq build examples/digits -o dist", "flq run digits-1.0.0-0af3b2c1.flq.zip"),
)
@click.argument("app", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=".", help="Folder [default: this one]."
)
@json_option
def command(*, app: Path, output: Path, as_json: bool) -> None:
    """Write the bundle of an app, and print its sha256 and its file.

    APP is the project's folder, by default this one. The file is called NAME-VERSION-SHA8.flq.zip. The same files make
    the same bundle, whenever and wherever it is built. `flq run FILE` runs it.
    """
    from flq.apps.bundle_file import open_app, write_bundle

    project, packed = open_app(app)
    file = write_bundle(project, packed, output)
    if as_json:
        print_json(
            {
                "app": project.name,
                "version": project.version,
                "path": str(file),
                "hash": packed.hash,
                "size": len(packed.data),
                "files": packed.files,
            }
        )
    else:
        click.echo(f"{packed.hash.hex()}  {file}")
