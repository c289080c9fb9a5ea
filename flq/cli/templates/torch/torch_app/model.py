"""The model: a small network. Nothing in this file knows of federations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_app.data import CLASSES, FEATURES


def network(*, hidden: int) -> nn.Module:
    """The network, with weights that torch draws at random: after torch.manual_seed they are always the same."""
    return nn.Sequential(
        nn.Linear(FEATURES, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )


def measure(model: nn.Module, examples: TensorDataset) -> tuple[float, float]:
    """Loss (mean cross entropy) and accuracy (the part that is classified correctly)."""
    points, labels = examples.tensors
    model.eval()
    with torch.no_grad():
        scores = model(points)
    accuracy = (scores.argmax(dim=1) == labels).float().mean()
    return nn.functional.cross_entropy(scores, labels).item(), accuracy.item()


def train(
    model: nn.Module, examples: TensorDataset, *, learning_rate: float, epochs: int, batch_size: int, seed: int
) -> None:
    """Stochastic gradient descent; changes `model` in place."""
    shuffle = torch.Generator().manual_seed(seed)
    loader = DataLoader(examples, batch_size=batch_size, shuffle=True, generator=shuffle)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for points, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(points), labels).backward()
            optimizer.step()
