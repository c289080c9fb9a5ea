"""The loop of a legacy strategy as a function of Grid and context, with rounds that can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from flq.apps.context import Context
from flq.apps.legacy import record, rounds
from flq.apps.legacy.clients import Attendance, ClientManager, SimpleClientManager
from flq.apps.legacy.history import History
from flq.apps.legacy.parameters import arrayrecord_to_parameters, parameters_to_arrayrecord
from flq.apps.legacy.server import ServerConfig
from flq.apps.legacy.strategy import FedAvg, Strategy
from flq.apps.legacy.typing import Parameters
from flq.apps.strategy.grids import MessageGrid
from flq.wire.records import ConfigRecord

MAIN_CONFIGS_RECORD = "config"
MAIN_PARAMS_RECORD = "parameters"
CURRENT_ROUND = "current_round"

RoundWorkflow = Callable[[MessageGrid, Context], None]
"""One part of a round: reads and writes the `state` of the LegacyContext that it is given."""


@dataclass
class LegacyContext(Context):
    """The context of a ServerApp with what a legacy loop needs.

    Attributes
    ----------
    config, strategy, client_manager
        As for a Server; defaults where they are None.
    history
        What the rounds have brought.
    state
        The model is its ArrayRecord `parameters`, the round `current_round` in its ConfigRecord `config`.

    """

    config: ServerConfig = field(default_factory=ServerConfig)
    strategy: Strategy = field(default_factory=FedAvg)
    client_manager: ClientManager = field(default_factory=SimpleClientManager)
    history: History = field(default_factory=History)

    def __init__(
        self,
        context: Context,
        config: ServerConfig | None = None,
        strategy: Strategy | None = None,
        client_manager: ClientManager | None = None,
    ) -> None:
        super().__init__(**{name: getattr(context, name) for name in Context.__dataclass_fields__})
        self.config = config or ServerConfig()
        self.strategy = strategy or FedAvg()
        self.client_manager = client_manager or SimpleClientManager()
        self.history = History()


class DefaultWorkflow:
    """Trains round by round, `workflow(grid, legacy_context)`; both parts of a round can be replaced."""

    def __init__(
        self, fit_workflow: RoundWorkflow | None = None, evaluate_workflow: RoundWorkflow | None = None
    ) -> None:
        self.fit_workflow = fit_workflow or fit
        self.evaluate_workflow = evaluate_workflow or evaluate

    def __call__(self, grid: MessageGrid, context: Context) -> None:
        """Execute the loop. Raises `TypeError` for another context than a LegacyContext."""
        legacy = _legacy(context)
        attendance = Attendance(grid, legacy.client_manager)
        attendance.take()
        num_rounds, timeout = legacy.config.num_rounds, legacy.config.round_timeout
        begun = record.begin(grid, num_rounds)
        _keep(legacy, rounds.initial_parameters(legacy.strategy, legacy.client_manager, 0, timeout))
        _evaluate_centrally(grid, legacy, 0)
        for server_round in range(1, num_rounds + 1):
            legacy.state[MAIN_CONFIGS_RECORD] = ConfigRecord({CURRENT_ROUND: server_round})
            attendance.take()
            self.fit_workflow(grid, legacy)
            _evaluate_centrally(grid, legacy, server_round)
            self.evaluate_workflow(grid, legacy)
        record.end(legacy.history, num_rounds, begun)


def fit(grid: MessageGrid, context: Context) -> None:
    """A round of training: the clients that the strategy chooses, and the model that it makes of their answers."""
    legacy = _legacy(context)
    trained = rounds.train(*_round(legacy))
    if trained is None:
        return
    parameters, metrics, _ = trained
    if parameters is not None:
        _keep(legacy, parameters)
    record.fitted(legacy.history, grid, current_round(legacy), metrics)


def evaluate(grid: MessageGrid, context: Context) -> None:
    """A round of evaluation by clients."""
    legacy = _legacy(context)
    evaluated = rounds.evaluate(*_round(legacy))
    if evaluated is not None:
        loss, metrics, _ = evaluated
        record.evaluated(legacy.history, grid, current_round(legacy), loss, metrics)


def current_round(context: LegacyContext) -> int:
    """The number of the round that the context is in, from 1 on."""
    return cast("int", context.state.config_records[MAIN_CONFIGS_RECORD][CURRENT_ROUND])


def _evaluate_centrally(grid: MessageGrid, context: LegacyContext, server_round: int) -> None:
    measured = context.strategy.evaluate(server_round, parameters=_parameters(context))
    record.centralized(context.history, grid, server_round, measured)


def _legacy(context: Context) -> LegacyContext:
    if not isinstance(context, LegacyContext):
        raise TypeError(f"a workflow needs a LegacyContext, not {type(context).__name__}: make one of the context")
    return context


def _round(context: LegacyContext) -> tuple[Strategy, ClientManager, int, Parameters, float | None]:
    """What both parts of a round are asked."""
    strategy, clients, timeout = context.strategy, context.client_manager, context.config.round_timeout
    return strategy, clients, current_round(context), _parameters(context), timeout


def _parameters(context: LegacyContext) -> Parameters:
    return arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD])


def _keep(context: LegacyContext, parameters: Parameters) -> None:
    context.state[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(parameters)
