"""legacy numpy: an app written for Flower."""
