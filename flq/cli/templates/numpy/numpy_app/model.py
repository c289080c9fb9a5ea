"""The model: logistic regression. Nothing in this file knows of federations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numpy_app.data import FEATURES, Labels, Points

Weights = list[NDArray[np.float64]]
"""The coefficients, (FEATURES,), and the intercept, (1,)."""


def initial() -> Weights:
    """The model before any training."""
    return [np.zeros(FEATURES), np.zeros(1)]


def predict(weights: Weights, points: Points) -> NDArray[np.float64]:
    """The probability of class 1 for each point."""
    coefficients, intercept = weights
    return 1 / (1 + np.exp(-(points @ coefficients + intercept)))


def measure(weights: Weights, points: Points, labels: Labels) -> tuple[float, float]:
    """Loss (mean cross entropy) and accuracy (the part that is classified correctly)."""
    probabilities = np.clip(predict(weights, points), 1e-9, 1 - 1e-9)
    loss = -np.mean(labels * np.log(probabilities) + (1 - labels) * np.log(1 - probabilities))
    accuracy = np.mean((probabilities > 0.5) == (labels == 1))
    return float(loss), float(accuracy)


def train(
    weights: Weights,
    points: Points,
    labels: Labels,
    *,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    rng: np.random.Generator,
) -> None:
    """Stochastic gradient descent; changes `weights` in place."""
    coefficients, intercept = weights
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for start in range(0, len(labels), batch_size):
            batch = order[start : start + batch_size]
            errors = predict(weights, points[batch]) - labels[batch]
            coefficients -= learning_rate * points[batch].T @ errors / len(batch)
            intercept -= learning_rate * errors.mean()
