"""The embedded federation: Postgres and Valkey from wheels, and their supervision."""
