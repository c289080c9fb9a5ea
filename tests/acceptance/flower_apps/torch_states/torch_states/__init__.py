"""torch states: an app written for Flower."""
