"""flq: a federated-learning runtime whose whole state lives in PostgreSQL."""

__version__ = "0.1.0.dev0"
