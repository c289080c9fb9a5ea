"""The model: a linear classifier of scikit-learn, and its weights as arrays. Nothing in this file knows of federations.

Any estimator can be used whose `partial_fit` goes on from weights that can be read and set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from sklearn_app.data import Images, Labels

CLASSES = np.arange(10)
PIXELS = 64

Weights = list[NDArray[np.float64]]
"""`coef_`, (10, 64), and `intercept_`, (10,)."""


def initial() -> Weights:
    """The model before any training."""
    return [np.zeros((len(CLASSES), PIXELS)), np.zeros(len(CLASSES))]


def estimator(weights: Weights, *, learning_rate: float = 0.01, seed: int = 0) -> SGDClassifier:
    """An estimator with these weights: it can predict, and `partial_fit` goes on from them."""
    found = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=learning_rate, random_state=seed)
    found.classes_ = CLASSES
    found.coef_, found.intercept_ = weights
    return found


def measure(weights: Weights, images: Images, labels: Labels) -> tuple[float, float]:
    """Loss (mean cross entropy) and accuracy (the part of the digits that is recognised)."""
    fitted = estimator(weights)
    loss = log_loss(labels, fitted.predict_proba(images), labels=CLASSES)
    return float(loss), float(fitted.score(images, labels))


def train(weights: Weights, images: Images, labels: Labels, *, learning_rate: float, epochs: int, seed: int) -> Weights:
    """Go on training from `weights`; returns the new ones."""
    found = estimator(weights, learning_rate=learning_rate, seed=seed)
    for _ in range(epochs):
        found.partial_fit(images, labels, classes=CLASSES)
    return [found.coef_, found.intercept_]
