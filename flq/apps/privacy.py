"""How much privacy a training has spent: accounting by Rényi differential privacy.

What is protected is the participation of a node with all its data. A release is a sum of clipped updates with Gaussian
noise; the losses of releases add up order by order, and are turned into (epsilon, delta) at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

DEFAULT_ORDERS = (
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *map(float, range(11, 65)),
    128.0,
    256.0,
    512.0,
    1024.0,
)
"""The Rényi orders at which losses are added up; the best one of them counts."""

_METHOD = "rdp"
_STATE_VERSION = 1
_PAIR = 2


class NeighboringRelation(StrEnum):
    """Which two federations must be hard to tell apart."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


class SamplingMethod(StrEnum):
    """How the nodes of a release are chosen; what an observer does not know about the choice amplifies privacy."""

    POISSON = "poisson"
    WITHOUT_REPLACEMENT = "without-replacement"
    NO_AMPLIFICATION = "no-amplification"


_MODELS = {
    (SamplingMethod.POISSON, NeighboringRelation.ADD_OR_REMOVE_ONE),
    (SamplingMethod.WITHOUT_REPLACEMENT, NeighboringRelation.REPLACE_ONE),
    (SamplingMethod.NO_AMPLIFICATION, NeighboringRelation.ADD_OR_REMOVE_ONE),
}


@dataclass(frozen=True)
class PrivacyConfig:
    """What is accounted for.

    Parameters
    ----------
    target_delta
        The delta that epsilon is told for, more than 0 and less than 1.
    population_size
        How many nodes there are to choose from.
    neighboring_relation, sampling_method
        POISSON and NO_AMPLIFICATION go with ADD_OR_REMOVE_ONE, WITHOUT_REPLACEMENT with REPLACE_ONE.
    max_epsilon
        What may be spent at most.

    """

    target_delta: float
    population_size: int
    neighboring_relation: NeighboringRelation
    sampling_method: SamplingMethod
    max_epsilon: float | None = None

    def __post_init__(self) -> None:
        _check_delta("target_delta", self.target_delta)
        _check_count("population_size", self.population_size)
        object.__setattr__(self, "neighboring_relation", NeighboringRelation(self.neighboring_relation))
        object.__setattr__(self, "sampling_method", SamplingMethod(self.sampling_method))
        if self.max_epsilon is not None:
            _check_positive("max_epsilon", self.max_epsilon)
        if (self.sampling_method, self.neighboring_relation) not in _MODELS:
            raise ValueError(
                f"sampling {self.sampling_method} does not go with the relation {self.neighboring_relation}"
            )


@dataclass(frozen=True)
class GaussianPrivacyEvent:
    """A release: the sum of the updates of `sample_size` nodes with noise of `noise_multiplier` clipping norms."""

    noise_multiplier: float
    sample_size: int
    population_size: int

    def __post_init__(self) -> None:
        _check_positive("noise_multiplier", self.noise_multiplier)
        _check_count("sample_size", self.sample_size)
        _check_count("population_size", self.population_size)
        if self.sample_size > self.population_size:
            raise ValueError(f"{self.sample_size} nodes cannot be chosen from {self.population_size}")


@dataclass(frozen=True)
class PrivacySpent:
    """What has been spent: an (epsilon, delta) that all releases together stand for."""

    epsilon: float
    delta: float
    num_releases: int
    accounting_method: str
    optimal_order: float | None = None


class PrivacyAccountant(Protocol):
    """Counts releases."""

    @property
    def config(self) -> PrivacyConfig:
        """What is accounted for."""

    @property
    def num_releases(self) -> int:
        """How many releases there have been."""

    def compose(self, event: GaussianPrivacyEvent, count: int = 1) -> None:
        """Count a release, or several equal ones."""

    def get_epsilon(self, delta: float) -> float:
        """The epsilon that has been spent at `delta`."""

    def get_delta(self, epsilon: float) -> float:
        """The delta that has been spent at `epsilon`."""

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        """What has been spent at `delta`, or at the config's."""

    def would_exceed(self, event: GaussianPrivacyEvent, max_epsilon: float | None = None, count: int = 1) -> bool:
        """Whether so many more releases would spend more than `max_epsilon`, or the config's; counts nothing."""

    def state_dict(self) -> dict[str, object]:
        """The state, for `json.dumps`."""

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take a state up."""


class RdpAccountant:
    """Adds up Rényi losses: Mironov (2017), "Rényi Differential Privacy", https://arxiv.org/abs/1702.07476.

    The loss of a release at order a with noise multiplier s is a / (2 s^2) without amplification. For Poisson
    sampling it is that of Mironov et al. (2019), "Rényi Differential Privacy of the Sampled Gaussian Mechanism",
    https://arxiv.org/abs/1908.10530; for sampling without replacement it is bounded as in Wang et al. (2019),
    "Subsampled Rényi Differential Privacy and Analytical Moments Accountant", https://arxiv.org/abs/1808.00087; both
    at whole orders only.
    (epsilon, delta) is that of Canonne et al. (2020), "The Discrete Gaussian for Differential Privacy",
    https://arxiv.org/abs/2004.00010, proposition 12.

    Parameters
    ----------
    config
        What is accounted for.
    orders
        The orders, each more than 1.

    """

    def __init__(self, config: PrivacyConfig, orders: Sequence[float] | None = None) -> None:
        self._config = config
        self._orders = DEFAULT_ORDERS if orders is None else tuple(float(order) for order in orders)
        if not self._orders or any(not math.isfinite(order) or order <= 1 for order in self._orders):
            raise ValueError("orders are finite and more than 1, and there is at least one")
        self._releases: list[tuple[GaussianPrivacyEvent, int]] = []

    @property
    def config(self) -> PrivacyConfig:
        """What is accounted for."""
        return self._config

    @property
    def num_releases(self) -> int:
        """How many releases there have been."""
        return sum(count for _, count in self._releases)

    def compose(self, event: GaussianPrivacyEvent, count: int = 1) -> None:
        """Count a release, or several equal ones. Raises `ValueError` if it is of another population."""
        self._releases = self._with(event, count)

    def _with(self, event: GaussianPrivacyEvent, count: int) -> list[tuple[GaussianPrivacyEvent, int]]:
        _check_count("count", count)
        if event.population_size != self._config.population_size:
            raise ValueError(f"a release from {event.population_size} nodes, for {self._config.population_size}")
        if self._releases and self._releases[-1][0] == event:
            return [*self._releases[:-1], (event, self._releases[-1][1] + count)]
        return [*self._releases, (event, count)]

    def get_epsilon(self, delta: float) -> float:
        """The epsilon that has been spent at `delta`."""
        return self._spent(self._releases, delta)[0]

    def get_delta(self, epsilon: float) -> float:
        """The delta that has been spent at `epsilon`."""
        if not math.isfinite(epsilon) or epsilon < 0:
            raise ValueError(f"epsilon is {epsilon}; it must be 0 or more")
        if not self._releases:
            return 0.0
        logs = (
            (order - 1) * (loss - epsilon + math.log1p(-1 / order)) - math.log(order)
            for order, loss in self._losses(self._releases)
        )
        return min(1.0, math.exp(min(0.0, *logs)))

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        """What has been spent at `delta`, or at the config's."""
        delta = self._config.target_delta if delta is None else delta
        epsilon, order = self._spent(self._releases, delta)
        return PrivacySpent(epsilon, delta, self.num_releases, _METHOD, order)

    def would_exceed(self, event: GaussianPrivacyEvent, max_epsilon: float | None = None, count: int = 1) -> bool:
        """Whether so many more releases would spend more than `max_epsilon`, or the config's; counts nothing."""
        limit = self._config.max_epsilon if max_epsilon is None else max_epsilon
        if limit is None:
            raise ValueError("there is no max_epsilon, neither here nor in the PrivacyConfig")
        _check_positive("max_epsilon", limit)
        return self._spent(self._with(event, count), self._config.target_delta)[0] > limit

    def state_dict(self) -> dict[str, object]:
        """The state, for `json.dumps`."""
        return {
            "schema_version": _STATE_VERSION,
            "backend": _METHOD,
            "config": asdict(self._config),
            "orders": list(self._orders),
            "compositions": [{"event": asdict(event), "count": count} for event, count in self._releases],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state up. Raises `ValueError` if it is of another config, or cannot be read."""
        if (state.get("schema_version"), state.get("backend")) != (_STATE_VERSION, _METHOD):
            raise ValueError("the state of the accountant is of another version or method")
        try:
            if PrivacyConfig(**state["config"]) != self._config:
                raise ValueError("the state of the accountant is of another PrivacyConfig")
            other = RdpAccountant(self._config, state["orders"])
            for release in state["compositions"]:
                other.compose(GaussianPrivacyEvent(**release["event"]), release["count"])
        except (KeyError, TypeError) as exc:
            raise ValueError(f"the state of the accountant cannot be read: {exc}") from exc
        self._orders, self._releases = other._orders, other._releases

    def _losses(self, releases: Iterable[tuple[GaussianPrivacyEvent, int]]) -> Iterable[tuple[float, float]]:
        """Each order with the sum of the losses at it."""
        for order in self._orders:
            yield order, sum(count * self._loss(event, order) for event, count in releases)

    def _loss(self, event: GaussianPrivacyEvent, order: float) -> float:
        rate, noise = event.sample_size / event.population_size, event.noise_multiplier
        if self._config.sampling_method is SamplingMethod.NO_AMPLIFICATION:
            return order / (2 * noise**2)
        if rate == 1 and self._config.sampling_method is SamplingMethod.POISSON:
            return order / (2 * noise**2)
        if not order.is_integer():
            return math.inf
        if self._config.sampling_method is SamplingMethod.POISSON:
            return _poisson_loss(rate, noise, int(order))
        return min(_without_replacement_loss(rate, noise, int(order)), order / (2 * noise**2))

    def _spent(self, releases: Sequence[tuple[GaussianPrivacyEvent, int]], delta: float) -> tuple[float, float | None]:
        _check_delta("delta", delta)
        if not releases:
            return 0.0, None
        return min(
            (max(0.0, loss + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)), order)
            for order, loss in self._losses(releases)
        )


def _poisson_loss(rate: float, noise: float, order: int) -> float:
    """Mironov et al. (2019), section 3.3: the loss at a whole order."""
    terms = [
        _log_choose(order, k) + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
    ]
    return _log_sum(terms) / (order - 1)


def _without_replacement_loss(rate: float, noise: float, order: int) -> float:
    """Wang et al. (2019), theorem 9: a bound on the loss at a whole order, for noise without a largest loss."""

    def loss(at: int) -> float:
        return at / (2 * noise**2)

    second = min(math.log(4) + _log_expm1(loss(_PAIR)), loss(_PAIR) + math.log(2))
    terms = [0.0, 2 * math.log(rate) + _log_choose(order, _PAIR) + second]
    terms += [
        k * math.log(rate) + _log_choose(order, k) + (k - 1) * loss(k) + math.log(2)
        for k in range(_PAIR + 1, order + 1)
    ]
    return _log_sum(terms) / (order - 1)


def _log_expm1(value: float) -> float:
    """The logarithm of exp(value) - 1, also where exp(value) is no float any more."""
    return value + math.log(-math.expm1(-value))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_sum(terms: Sequence[float]) -> float:
    """The logarithm of the sum of exp of the terms."""
    largest = max(terms)
    return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))


def _check_delta(name: str, delta: float) -> None:
    if isinstance(delta, bool) or not math.isfinite(delta) or not 0 < delta < 1:
        raise ValueError(f"{name} is {delta}; it must be more than 0 and less than 1")


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} is {value}; it must be positive and finite")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} is {value!r}; it must be a positive whole number")
