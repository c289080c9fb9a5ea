"""own strategy: an app written for Flower."""
