"""A linear classifier of scikit-learn, trained in a federation on handwritten digits."""
