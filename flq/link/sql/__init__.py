"""Named statements, one file an aggregate. A statement is `-- name: statement_name`, purpose lines, SQL."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final, LiteralString, cast

_HEAD = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load(aggregate: str) -> dict[str, LiteralString]:
    """The statements of `flq/link/sql/<aggregate>.sql` by name. They are literals of ours: nothing is put into them."""
    content = files(__name__).joinpath(f"{aggregate}.sql").read_text(encoding="utf-8")
    _, *parts = _HEAD.split(content)
    return {name: cast("LiteralString", body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


AGGREGATES: Final = (
    "runs", "attempts", "batches", "tasks", "results", "nodes", "processes", "objects", "bundles", "checkpoints",
    "artifacts", "metrics", "events", "logs", "maintenance", "inspect", "shared", "collection", "retention", "quotas",
    "verify", "backup",
)  # fmt: skip
