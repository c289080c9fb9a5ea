"""overridden strategy: an app written for Flower."""
