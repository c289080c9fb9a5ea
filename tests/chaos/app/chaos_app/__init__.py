"""An app whose every number depends on its seed, and on nothing that a crash may change."""
