"""The `flq` command."""
