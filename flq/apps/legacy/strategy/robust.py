"""Rules that a number of lying clients cannot move far; the papers are named in `aggregate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flq.apps.legacy.clients import ClientProxy
from flq.apps.legacy.strategy.aggregate import (
    aggregate_bulyan,
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)
from flq.apps.legacy.strategy.fedavg import FedAvg, weighted
from flq.apps.legacy.typing import FitRes, NDArrays


class FedMedian(FedAvg):
    """The median of each element. Parameters: those of FedAvg."""

    def combine(self, results: list[tuple[ClientProxy, FitRes]]) -> NDArrays:
        """The median of the models."""
        return aggregate_median(weighted(results))


class FedTrimmedAvg(FedAvg):
    """The mean of each element without the share `beta` of the lowest and of the highest."""

    def __init__(self, *, beta: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta

    def combine(self, results: list[tuple[ClientProxy, FitRes]]) -> NDArrays:
        """The trimmed mean of the models."""
        return aggregate_trimmed_avg(weighted(results), self.beta)


class Krum(FedAvg):
    """The model nearest to its neighbours, or the mean of the `num_clients_to_keep` nearest (MultiKrum)."""

    def __init__(self, *, num_malicious_clients: int = 0, num_clients_to_keep: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.num_malicious_clients = num_malicious_clients
        self.num_clients_to_keep = num_clients_to_keep

    def combine(self, results: list[tuple[ClientProxy, FitRes]]) -> NDArrays:
        """The model that Krum selects."""
        return aggregate_krum(weighted(results), self.num_malicious_clients, self.num_clients_to_keep)


class Bulyan(FedAvg):
    """The mean around the median of models that another rule, Krum by default, selects one by one."""

    def __init__(
        self,
        *,
        num_malicious_clients: int = 0,
        first_aggregation_rule: Callable[..., NDArrays] = aggregate_krum,
        **options: Any,
    ) -> None:
        rule_options = {key: options.pop(key) for key in tuple(options) if key not in _FEDAVG_OPTIONS}
        super().__init__(**options)
        self.num_malicious_clients = num_malicious_clients
        self.first_aggregation_rule = first_aggregation_rule
        self.aggregation_rule_kwargs = rule_options

    def combine(self, results: list[tuple[ClientProxy, FitRes]]) -> NDArrays:
        """The model that Bulyan makes."""
        options = self.aggregation_rule_kwargs
        if self.first_aggregation_rule is aggregate_krum:
            options = {"to_keep": 0, **options}
        return aggregate_bulyan(weighted(results), self.num_malicious_clients, self.first_aggregation_rule, **options)


_FEDAVG_OPTIONS = frozenset(FedAvg.__init__.__kwdefaults__ or ())
