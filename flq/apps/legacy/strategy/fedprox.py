"""FedProx for legacy clients: Li et al. (2020), "Federated Optimization in Heterogeneous Networks".

https://arxiv.org/abs/1812.06127
"""

from __future__ import annotations

from typing import Any

from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.strategy.fedavg import FedAvg
from flq.apps.legacy.typing import FitIns, Parameters


class FedProx(FedAvg):
    """FedAvg that tells clients `proximal_mu`: they add mu / 2 of the squared distance to the model to their loss."""

    def __init__(self, *, proximal_mu: float, **options: Any) -> None:
        super().__init__(**options)
        self.proximal_mu = proximal_mu

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """As FedAvg, with `proximal_mu` in the configuration."""
        chosen = super().configure_fit(server_round, parameters, client_manager)
        config = {**(chosen[0][1].config if chosen else {}), "proximal_mu": self.proximal_mu}
        request = FitIns(parameters, config)
        return [(client, request) for client, _ in chosen]
