"""Named statements, one file an aggregate. A statement is `-- name: statement_name`, purpose lines, SQL."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final, LiteralString

_HEAD = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_COMMENT = re.compile(r"--.*")  # no literal of ours has two dashes


def load(aggregate: str) -> dict[str, LiteralString]:
    """The statements of `flq/link/sql/<aggregate>.sql` by name. They are literals of ours: nothing is put into them."""
    content = files(__name__).joinpath(f"{aggregate}.sql").read_text(encoding="utf-8")
    _, *parts = _HEAD.split(content)
    return {name: _bare(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _bare(body: str) -> LiteralString:
    """A statement without what is for readers: psycopg parses one above 4,096 bytes anew with every call."""
    lines = (_COMMENT.sub("", line).strip() for line in body.splitlines())
    return "\n".join(line for line in lines if line)


AGGREGATES: Final = (
    "runs", "lineage", "attempts", "batches", "tasks", "results", "nodes", "processes", "objects", "bundles", "steps",
    "checkpoints", "artifacts", "metrics", "events", "logs", "maintenance", "inspect", "shared", "collection",
    "retention", "quotas", "verify", "backup", "states",
)  # fmt: skip
