"""Benchmarks of flq beside its peers: `python -m benchmarks --help`, and docs/benchmarks.md."""
