"""From the models of clients, as lists of arrays with numbers of examples, to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flq.apps.legacy.clients import ClientProxy
from flq.apps.legacy.parameters import parameters_to_ndarrays
from flq.apps.legacy.typing import FitRes, NDArray, NDArrays

Weighted = tuple[NDArrays, int]
"""A model and its number of examples."""


def aggregate(results: list[Weighted]) -> NDArrays:
    """The mean of models, weighted by examples (McMahan et al. (2017), https://arxiv.org/abs/1602.05629).

    Raises `ValueError` if there are no examples at all.
    """
    total = _examples([examples for _, examples in results])
    mean = [np.multiply(array, results[0][1] / total) for array in results[0][0]]
    for arrays, examples in results[1:]:
        for place, array in enumerate(arrays):
            mean[place] = mean[place] + np.multiply(array, examples / total)
    return mean


def aggregate_inplace(results: list[tuple[ClientProxy, FitRes]]) -> NDArrays:
    """The same of clients' answers, one in memory at a time."""
    total = _examples([answer.num_examples for _, answer in results])
    mean: NDArrays = []
    for _, answer in results:
        share = answer.num_examples / total
        scaled = [np.multiply(array, share) for array in parameters_to_ndarrays(answer.parameters)]
        mean = [np.add(ours, theirs) for ours, theirs in zip(mean, scaled, strict=True)] if mean else scaled
    return mean


def aggregate_median(results: list[Weighted]) -> NDArrays:
    """The median of each element (Yin et al. (2018), https://arxiv.org/abs/1803.01498)."""
    return [np.median(np.asarray(layers), axis=0) for layers in _layers(results)]


def aggregate_trimmed_avg(results: list[Weighted], proportiontocut: float) -> NDArrays:
    """The mean of each element without that share of the lowest and of the highest (Yin et al. (2018)).

    Raises `ValueError` if nothing would be left.
    """
    return [_trimmed_mean(np.asarray(layers), proportiontocut) for layers in _layers(results)]


def aggregate_krum(results: list[Weighted], num_malicious: int, to_keep: int) -> NDArrays:
    """The model that is nearest to its neighbours, or the mean of the `to_keep` nearest ones.

    Blanchard et al. (2017), "Machine Learning with Adversaries", https://papers.nips.cc/paper/6617: the score of a
    model is the sum of squared distances to its n - num_malicious - 2 nearest ones.
    """
    scores = krum_scores([arrays for arrays, _ in results], num_malicious)
    if to_keep > 0:
        return aggregate([results[place] for place in np.argsort(scores)[::-1][len(scores) - to_keep :]])
    return results[int(np.argmin(scores))][0]


def aggregate_bulyan(
    results: list[Weighted],
    num_malicious: int,
    aggregation_rule: Callable[..., NDArrays],
    **aggregation_rule_kwargs: Any,
) -> NDArrays:
    """The mean of the elements around the median, of models that a robust rule selects one by one.

    El Mhamdi et al. (2018), "The Hidden Vulnerability of Distributed Learning in Byzantium",
    https://arxiv.org/abs/1802.07927: theta = n - 2 num_malicious models are selected, and of each element the
    beta = theta - 2 num_malicious values nearest to the median are averaged. Raises `ValueError` unless
    n >= 4 num_malicious + 3.
    """
    if len(results) < 4 * num_malicious + 3:
        raise ValueError(
            f"Bulyan needs {4 * num_malicious + 3} models against {num_malicious} liars, not {len(results)}"
        )
    left, selected = list(results), []
    for _ in range(max(1, len(results) - 2 * num_malicious)):
        best = aggregation_rule(left, num_malicious=num_malicious, **aggregation_rule_kwargs)
        place = min(range(len(left)), key=lambda index: _distance(left[index][0], best))
        selected.append(left.pop(place))
    keep = max(1, len(selected) - 2 * num_malicious)
    return [_around_median(np.asarray(layers), keep) for layers in _layers(selected)]


def aggregate_qffl(parameters: NDArrays, deltas: list[NDArrays], hs_fll: list[float]) -> NDArrays:
    """The step of q-FedAvg: parameters minus the sum of deltas over the sum of h (Li et al. (2020), algorithm 2)."""
    total = float(np.sum(np.asarray(hs_fll)))
    steps = [np.sum(np.asarray(layers), axis=0) / total for layers in zip(*deltas, strict=True)]
    return [(array - step).astype(array.dtype) for array, step in zip(parameters, steps, strict=True)]


def weighted_loss_avg(results: list[tuple[int, float]]) -> float:
    """The mean of losses, weighted by examples. Raises `ValueError` if there are no examples at all."""
    total = _examples([examples for examples, _ in results])
    return sum(examples * loss for examples, loss in results) / total


def krum_scores(models: Sequence[NDArrays], num_malicious: int) -> NDArray:
    """The sum of squared distances of each model to its nearest ones; shape `[n]`, float64."""
    flat = np.stack([np.concatenate([np.ravel(array).astype(np.float64) for array in model]) for model in models])
    distances = np.stack([np.square(flat - row).sum(axis=1) for row in flat])  # row by row, not n*n differences at once
    nearest = max(1, len(models) - num_malicious - 2)
    scores: NDArray = np.sort(distances, axis=1)[:, 1 : nearest + 1].sum(axis=1)  # the first is that to itself
    return scores


def _distance(one: NDArrays, other: NDArrays) -> float:
    return float(sum(np.square(np.subtract(a, b, dtype=np.float64)).sum() for a, b in zip(one, other, strict=True)))


def _around_median(stacked: NDArray, keep: int) -> NDArray:
    median = np.median(stacked, axis=0)
    nearest = np.argsort(np.abs(stacked - median), axis=0, kind="stable")[:keep]
    mean: NDArray = np.take_along_axis(stacked, nearest, axis=0).mean(axis=0)
    return mean


def _trimmed_mean(stacked: NDArray, share: float) -> NDArray:
    cut = int(share * len(stacked))
    if 2 * cut >= len(stacked):
        raise ValueError(f"cutting {share} of {len(stacked)} models at both ends leaves none")
    mean: NDArray = np.sort(stacked, axis=0)[cut : len(stacked) - cut].mean(axis=0)
    return mean


def _layers(results: list[Weighted]) -> list[tuple[NDArray, ...]]:
    return list(zip(*(arrays for arrays, _ in results), strict=True))


def _examples(counts: Sequence[int]) -> int:
    total = sum(counts)
    if total <= 0:
        raise ValueError(f"the clients have {total} examples together; a weighted mean needs at least one")
    return total
