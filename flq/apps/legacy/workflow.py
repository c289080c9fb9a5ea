"""The loop of a legacy strategy as a function of Grid and context, with rounds that can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from logging import INFO
from typing import cast

from flq.apps.context import Context
from flq.apps.legacy import record
from flq.apps.legacy.clients import EVALUATE, FIT, Attendance, ClientManager, SimpleClientManager, ask
from flq.apps.legacy.history import History
from flq.apps.legacy.parameters import arrayrecord_to_parameters, parameters_to_arrayrecord
from flq.apps.legacy.server import ServerConfig, initial_parameters
from flq.apps.legacy.strategy import FedAvg, Strategy
from flq.apps.legacy.typing import Parameters
from flq.apps.logger import log
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
        rounds, timeout = legacy.config.num_rounds, legacy.config.round_timeout
        begun = record.begin(grid, rounds)
        _keep(legacy, initial_parameters(legacy.strategy, legacy.client_manager, 0, timeout))
        _evaluate_centrally(grid, legacy, 0)
        for server_round in range(1, rounds + 1):
            legacy.state[MAIN_CONFIGS_RECORD] = ConfigRecord({CURRENT_ROUND: server_round})
            attendance.take()
            self.fit_workflow(grid, legacy)
            _evaluate_centrally(grid, legacy, server_round)
            self.evaluate_workflow(grid, legacy)
        record.end(legacy.history, rounds, begun)


def fit(grid: MessageGrid, context: Context) -> None:
    """A round of training: the clients that the strategy chooses, and the model that it makes of their answers."""
    legacy = _legacy(context)
    server_round = current_round(legacy)
    instructions = legacy.strategy.configure_fit(
        server_round=server_round, parameters=_parameters(legacy), client_manager=legacy.client_manager
    )
    if not instructions:
        log(INFO, "round %d: no clients were chosen to train", server_round)
        return
    results, failures = ask(FIT, instructions, legacy.config.round_timeout, server_round)
    log(INFO, "round %d: %d clients have trained, %d have failed", server_round, len(results), len(failures))
    parameters, metrics = legacy.strategy.aggregate_fit(server_round, results, failures)
    if parameters is not None:
        _keep(legacy, parameters)
    record.fitted(legacy.history, grid, server_round, metrics)


def evaluate(grid: MessageGrid, context: Context) -> None:
    """A round of evaluation by clients."""
    legacy = _legacy(context)
    server_round = current_round(legacy)
    instructions = legacy.strategy.configure_evaluate(
        server_round=server_round, parameters=_parameters(legacy), client_manager=legacy.client_manager
    )
    if not instructions:
        log(INFO, "round %d: no clients were chosen to evaluate", server_round)
        return
    results, failures = ask(EVALUATE, instructions, legacy.config.round_timeout, server_round)
    log(INFO, "round %d: %d clients have evaluated, %d have failed", server_round, len(results), len(failures))
    loss, metrics = legacy.strategy.aggregate_evaluate(server_round, results, failures)
    record.evaluated(legacy.history, grid, server_round, loss, metrics)


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


def _parameters(context: LegacyContext) -> Parameters:
    return arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD])


def _keep(context: LegacyContext, parameters: Parameters) -> None:
    context.state[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(parameters)
