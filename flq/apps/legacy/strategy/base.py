"""What every legacy strategy must have."""

from __future__ import annotations

from abc import ABC, abstractmethod

from flq.apps.legacy.clients import ClientManager, ClientProxy
from flq.apps.legacy.typing import EvaluateIns, EvaluateRes, FitIns, FitRes, Metrics, Parameters

FitFailure = tuple[ClientProxy, FitRes] | BaseException
EvaluateFailure = tuple[ClientProxy, EvaluateRes] | BaseException


class Strategy(ABC):
    """Chooses the clients of each round, and makes a model of what they have trained."""

    @abstractmethod
    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """The initial model; None to take that of a client."""

    @abstractmethod
    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Who trains in this round, and with what."""

    @abstractmethod
    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[FitFailure]
    ) -> tuple[Parameters | None, Metrics]:
        """The new model (None keeps the old one) and metrics."""

    @abstractmethod
    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Who evaluates in this round, and with what."""

    @abstractmethod
    def aggregate_evaluate(
        self, server_round: int, results: list[tuple[ClientProxy, EvaluateRes]], failures: list[EvaluateFailure]
    ) -> tuple[float | None, Metrics]:
        """The clients' loss and metrics."""

    @abstractmethod
    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, Metrics] | None:
        """The server's loss and metrics; None to measure nothing."""
