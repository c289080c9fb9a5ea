"""client state: an app written for Flower."""
