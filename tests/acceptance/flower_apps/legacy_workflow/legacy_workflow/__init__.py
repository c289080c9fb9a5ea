"""legacy workflow: an app written for Flower."""
