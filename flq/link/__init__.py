"""SuperLink: every state change, and the only SQL."""
