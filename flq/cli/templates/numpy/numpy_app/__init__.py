"""Logistic regression in numpy, trained in a federation."""
