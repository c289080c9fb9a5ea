"""The logger of apps. Whoever runs an app decides where its lines go; in a run they are `flq logs`."""

from __future__ import annotations

import logging

logger = logging.getLogger("flq.app")

log = logger.log
"""`log(INFO, "trained on %d images", n)`, with the levels of `logging`."""
