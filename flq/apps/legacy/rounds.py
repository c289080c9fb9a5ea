"""The two parts of a legacy round, and the model that the first one begins with: for `Server` and for workflows."""

from __future__ import annotations

from logging import INFO
from typing import TYPE_CHECKING

from flq.apps.legacy.clients import EVALUATE, FIT, Answers, ClientManager, ask
from flq.apps.legacy.typing import Code, EvaluateRes, FitRes, GetParametersIns, Metrics, Parameters
from flq.apps.logger import log
from flq.errors import AppError

if TYPE_CHECKING:
    from flq.apps.legacy.strategy import Strategy


def train(
    strategy: Strategy, clients: ClientManager, server_round: int, parameters: Parameters, timeout: float | None
) -> tuple[Parameters | None, Metrics, Answers[FitRes]] | None:
    """Have the clients train that the strategy chooses: the new model, metrics, answers. None if it chooses none."""
    instructions = strategy.configure_fit(server_round=server_round, parameters=parameters, client_manager=clients)
    if not instructions:
        log(INFO, "round %d: no clients were chosen to train", server_round)
        return None
    results, failures = ask(FIT, instructions, timeout, server_round)
    log(INFO, "round %d: %d clients have trained, %d have failed", server_round, len(results), len(failures))
    trained, metrics = strategy.aggregate_fit(server_round, results, failures)
    return trained, metrics, (results, failures)


def evaluate(
    strategy: Strategy, clients: ClientManager, server_round: int, parameters: Parameters, timeout: float | None
) -> tuple[float | None, Metrics, Answers[EvaluateRes]] | None:
    """Have the clients evaluate that the strategy chooses: loss, metrics, answers. None if it chooses none."""
    instructions = strategy.configure_evaluate(server_round=server_round, parameters=parameters, client_manager=clients)
    if not instructions:
        log(INFO, "round %d: no clients were chosen to evaluate", server_round)
        return None
    results, failures = ask(EVALUATE, instructions, timeout, server_round)
    log(INFO, "round %d: %d clients have evaluated, %d have failed", server_round, len(results), len(failures))
    loss, metrics = strategy.aggregate_evaluate(server_round, results, failures)
    return loss, metrics, (results, failures)


def initial_parameters(
    strategy: Strategy, clients: ClientManager, server_round: int, timeout: float | None
) -> Parameters:
    """The strategy's initial parameters, or those of one client chosen at random. Raises `AppError` if it has none."""
    parameters = strategy.initialize_parameters(client_manager=clients)
    if parameters is not None:
        return parameters
    log(INFO, "the initial parameters come from one client chosen at random")
    (client,) = clients.sample(1)
    answer = client.get_parameters(ins=GetParametersIns(config={}), timeout=timeout, group_id=server_round)
    if answer.status.code != Code.OK:
        raise AppError(
            f"client {client.cid} has no initial parameters: {answer.status.message}",
            hint="give the strategy initial_parameters, or let the clients have get_parameters",
        )
    return answer.parameters
