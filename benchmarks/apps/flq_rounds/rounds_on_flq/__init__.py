"""Rounds with nothing to do in them: what is left is the runtime."""
