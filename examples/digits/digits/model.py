"""The model: one hidden layer with ReLU, softmax, cross entropy and plain SGD, all in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from digits.data import CLASSES, Images, Labels

PIXELS = 64

Weights = list[NDArray[np.float32]]
"""Weights and biases of the two layers: (64, hidden), (hidden,), (hidden, 10), (10,)."""


def initial(hidden: int, seed: int) -> Weights:
    """Weights as of He et al. (2015), biases of zero."""
    rng = np.random.default_rng([seed, 2])
    weights: Weights = []
    for inputs, outputs in pairwise((PIXELS, hidden, CLASSES)):
        weights.append(rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32))
        weights.append(np.zeros(outputs, np.float32))
    return weights


def _forward(weights: Weights, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The hidden layer's activations and the logarithms of the probabilities."""
    w1, b1, w2, b2 = weights
    active = np.maximum(images @ w1 + b1, 0)
    logits = active @ w2 + b2
    logits -= logits.max(axis=1, keepdims=True)
    return active, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def measure(weights: Weights, images: Images, labels: Labels) -> tuple[float, float]:
    """Mean cross entropy, and the part of the images that is recognised."""
    _, log_probabilities = _forward(weights, images)
    loss = -log_probabilities[np.arange(len(labels)), labels].mean()
    accuracy = (log_probabilities.argmax(axis=1) == labels).mean()
    return float(loss), float(accuracy)


def train(
    weights: Weights, images: Images, labels: Labels, *, epochs: int, batch_size: int, rate: float, seed: list[int]
) -> float:
    """Train `weights` in place; returns the mean loss of the last epoch."""
    rng = np.random.default_rng(seed)
    loss = 0.0
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        loss = sum(_step(weights, images[batch], labels[batch], rate) * len(batch) for batch in batches) / len(order)
    return loss


def _step(weights: Weights, images: Images, labels: Labels, rate: float) -> float:
    """One step of gradient descent; returns the loss before it."""
    w1, b1, w2, b2 = weights
    active, log_probabilities = _forward(weights, images)
    rows = np.arange(len(labels))
    loss = -log_probabilities[rows, labels].mean()
    slope = np.exp(log_probabilities)
    slope[rows, labels] -= 1
    slope /= len(labels)
    below = (slope @ w2.T) * (active > 0)
    w2 -= np.float32(rate) * (active.T @ slope)
    b2 -= np.float32(rate) * slope.sum(axis=0)
    w1 -= np.float32(rate) * (images.T @ below)
    b1 -= np.float32(rate) * below.sum(axis=0)
    return float(loss)
