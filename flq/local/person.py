"""Who is using this computer."""

from __future__ import annotations

import getpass
import os


def person() -> str:
    """The name of the user, or their number where there is no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return f"uid-{os.getuid()}"
