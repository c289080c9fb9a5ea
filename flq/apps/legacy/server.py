"""The loop of a legacy ServerApp: `Server.fit`, with a strategy and the clients of a Grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flq.apps.context import Context
from flq.apps.legacy import record, rounds
from flq.apps.legacy.clients import (
    Answers,
    Attendance,
    ClientManager,
    SimpleClientManager,
)
from flq.apps.legacy.history import History
from flq.apps.legacy.typing import EvaluateRes, FitRes, Metrics, Parameters
from flq.apps.strategy.grids import MessageGrid

if TYPE_CHECKING:
    from flq.apps.legacy.strategy import Strategy


@dataclass
class ServerConfig:
    """How many rounds, and how many seconds a round waits for its clients (None: as long as a message lives)."""

    num_rounds: int = 1
    round_timeout: float | None = None


@dataclass
class ServerAppComponents:
    """What a `server_fn` returns: a strategy, or a server that has one, and the configuration."""

    server: Server | None = None
    config: ServerConfig | None = None
    strategy: Strategy | None = None
    client_manager: ClientManager | None = None


class Server:
    """Leads a strategy through its rounds."""

    def __init__(self, *, client_manager: ClientManager, strategy: Strategy | None = None) -> None:
        from flq.apps.legacy.strategy import FedAvg

        self._client_manager = client_manager
        self.parameters = Parameters([], "numpy.ndarray")
        self.strategy: Strategy = strategy if strategy is not None else FedAvg()
        self.max_workers: int | None = None
        self._grid: MessageGrid | None = None
        self._attendance: Attendance | None = None

    def lead(self, grid: MessageGrid) -> None:
        """Take the nodes of `grid` for clients."""
        self._grid = grid
        self._attendance = Attendance(grid, self._client_manager)
        self._attendance.take()

    def set_max_workers(self, max_workers: int | None) -> None:
        """Keep the number; the clients of a round are asked at once whatever it is."""
        self.max_workers = max_workers

    def set_strategy(self, strategy: Strategy) -> None:
        """Replace the strategy."""
        self.strategy = strategy

    def client_manager(self) -> ClientManager:
        """What knows the clients."""
        return self._client_manager

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        """Train for so many rounds: the history, and how many seconds it took."""
        history, grid = History(), self._grid
        begun = record.begin(grid, num_rounds)
        self.parameters = self._get_initial_parameters(server_round=0, timeout=timeout)
        record.centralized(history, grid, 0, self.strategy.evaluate(0, parameters=self.parameters))
        for server_round in range(1, num_rounds + 1):
            if self._attendance is not None:
                self._attendance.take()
            fitted = self.fit_round(server_round=server_round, timeout=timeout)
            if fitted is not None:
                parameters, metrics, _ = fitted
                self.parameters = self.parameters if parameters is None else parameters
                record.fitted(history, grid, server_round, metrics)
            measured = self.strategy.evaluate(server_round, parameters=self.parameters)
            record.centralized(history, grid, server_round, measured)
            evaluated = self.evaluate_round(server_round=server_round, timeout=timeout)
            if evaluated is not None:
                loss, metrics, _ = evaluated
                record.evaluated(history, grid, server_round, loss, metrics)
        return history, record.end(history, num_rounds, begun)

    def fit_round(
        self, server_round: int, timeout: float | None
    ) -> tuple[Parameters | None, Metrics, Answers[FitRes]] | None:
        """One round of training; None if the strategy chose no clients."""
        return rounds.train(self.strategy, self._client_manager, server_round, self.parameters, timeout)

    def evaluate_round(
        self, server_round: int, timeout: float | None
    ) -> tuple[float | None, Metrics, Answers[EvaluateRes]] | None:
        """One round of evaluation by clients; None if the strategy chose none."""
        return rounds.evaluate(self.strategy, self._client_manager, server_round, self.parameters, timeout)

    def disconnect_all_clients(self, timeout: float | None) -> None:
        """Do nothing: nodes serve other runs too, and stay."""

    def _get_initial_parameters(self, server_round: int, timeout: float | None) -> Parameters:
        return rounds.initial_parameters(self.strategy, self._client_manager, server_round, timeout)


ServerFn = Callable[[Context], ServerAppComponents]
"""Makes the components of a legacy ServerApp from the run's configuration."""


def lead(grid: MessageGrid, components: ServerAppComponents) -> History:
    """Execute a legacy ServerApp to its end."""
    config = components.config or ServerConfig()
    server = components.server
    if server is None:
        clients = components.client_manager or SimpleClientManager()
        server = Server(client_manager=clients, strategy=components.strategy)
    server.lead(grid)
    history, _ = server.fit(num_rounds=config.num_rounds, timeout=config.round_timeout)
    return history
