"""App projects for tests of the SuperNode: a ClientApp from a piece of code."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from flq.node.options import SuperNodeOptions

HEAD = """\
import logging, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from flq.apps import ArrayRecord, ClientApp, ConfigRecord, Context, Message, MetricRecord, RecordDict

app = ClientApp()
"""

ECHO = """
@app.train()
def train(msg, context):
    return Message(msg.content, reply_to=msg)
"""

COUNT = """
@app.train()
def train(msg, context):
    before = context.state["c"]["count"] if "c" in context.state else 0
    context.state["c"] = ConfigRecord({"count": before + 1})
    context.state["big"] = ArrayRecord([np.full(50_000, before + 1.0)])
    return Message(RecordDict({"c": ConfigRecord({"before": before, "attempt": context.attempt})}), reply_to=msg)

@app.evaluate()
def evaluate(msg, context):
    state = context.state
    found = {"count": state["c"]["count"], "big": float(state["big"]["0"].numpy()[-1])} if state else {}
    return Message(RecordDict({"c": ConfigRecord(found)}), reply_to=msg)

@app.query()
def query(msg, context):
    context.state.clear()
    return Message(RecordDict(), reply_to=msg)
"""


def write_app(folder: Path, code: str = ECHO, *, dependencies: Sequence[str] = ()) -> Path:
    """A project in `folder` whose ClientApp is made by `code`, which goes after `HEAD`."""
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "__init__.py").touch()
    (folder / "app" / "client.py").write_text(HEAD + textwrap.dedent(code))
    (folder / "app" / "server.py").write_text("from flq.apps import ServerApp\n\napp = ServerApp()\n")
    (folder / "pyproject.toml").write_text(
        f"""\
[project]
name = "app"
version = "1"
dependencies = {list(dependencies)!r}

[tool.flq.app]
serverapp = "app.server:app"
clientapp = "app.client:app"
"""
    )
    return folder


def node_options(tmp_path: Path, **changes: object) -> SuperNodeOptions:
    """Options for one node named `node`, with what a test wants to be different."""
    options: dict[str, object] = {"name": "node", "slots": 1, "cache": tmp_path / "cache", **changes}
    return SuperNodeOptions(**options)  # type: ignore[arg-type]
