"""named arrays: an app written for Flower."""
