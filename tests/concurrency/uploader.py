"""A client that stores one file: `python -m tests.concurrency.uploader FILE`, with the DSN in `FLQ_DSN`."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from flq.link import objects
from flq.link.database import Database
from flq.wire.ids import ObjectHash

if __name__ == "__main__":
    content = Path(sys.argv[1]).read_bytes()
    name = ObjectHash(hashlib.sha256(content).digest())
    objects.put(Database(os.environ["FLQ_DSN"], application="flq uploader"), name, memoryview(content))
