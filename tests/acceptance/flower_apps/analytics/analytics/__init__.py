"""analytics: an app written for Flower."""
