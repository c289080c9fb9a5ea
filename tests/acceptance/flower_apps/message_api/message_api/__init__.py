"""message api: an app written for Flower."""
