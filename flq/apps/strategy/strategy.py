"""The loop that every strategy shares."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from logging import INFO

from flq.apps.logger import log
from flq.apps.strategy.grids import DurableGrid, FirstRepliesGrid, MessageGrid
from flq.apps.strategy.history import history
from flq.apps.strategy.journal import DurableJournal, Journal, Progress
from flq.apps.strategy.result import Result
from flq.apps.strategy.sampling import NODE_WAIT_SECONDS
from flq.wire.message import Message
from flq.wire.records import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
"""Measures the model of a round on the server; round 0 is the initial model."""


class Strategy(ABC):
    """Chooses nodes, sends them the model and makes a new one of their replies, round by round.

    The constructor of a strategy only keeps its arguments. A strategy that carries something from round to round
    besides the model returns it from `save_state` and takes it up in `load_state`.
    """

    seed: str | None = None
    """What the random choices of a training are seeded with, together with the round; None outside of a run."""

    patience: float = NODE_WAIT_SECONDS
    """How long to wait for nodes to be online, in seconds: the `timeout` of `start`."""

    round_deadline: float | None = None
    """How long a round waits for replies, in seconds, if that is shorter than `patience`."""

    enough: int | None = None
    """How many replies to the messages of the last `configure_...` end the wait for more; None waits for all."""

    @abstractmethod
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """The messages of a round of training."""

    @abstractmethod
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new model and the metrics of a round of training; None keeps the model, or says nothing.

        `replies` come one by one, errors among them; the arrays of each are read when they are touched.
        """

    @abstractmethod
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """The messages of a round's evaluation by the nodes; none skips it."""

    @abstractmethod
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The metrics of a round's evaluation by the nodes."""

    @abstractmethod
    def summary(self) -> None:
        """Log the settings of the strategy."""

    def save_state(self) -> RecordDict:
        """What the strategy carries from round to round besides the model: nothing, unless it is overridden."""
        return RecordDict()

    def load_state(self, state: RecordDict) -> None:  # noqa: B027 - most strategies have none
        """Take up what `save_state` returned after the last committed round."""

    def start(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
        grid: MessageGrid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train for `num_rounds` rounds.

        On a Grid of flq the initial arrays and each round are committed, and a restarted run goes on behind
        the last committed round, whatever `initial_arrays` are then.

        Parameters
        ----------
        grid
            The federation; a test double needs `get_node_ids`, `push_messages`, `pull_messages`
            and `send_and_receive` only.
        initial_arrays
            The model to start from.
        num_rounds
            How many rounds there are.
        timeout
            How long a round waits for its nodes to be online, and then for their replies, in seconds. Too few nodes
            end the run; replies that are missing are cancelled.
        train_config, evaluate_config
            Sent to the nodes with each message, together with the round's number as `server-round`.
        evaluate_fn
            Called with the round and the model: for the initial model as round 0, then after each round.

        """
        journal = DurableJournal(grid, num_rounds) if isinstance(grid, DurableGrid) else Journal()
        self.seed = journal.seed
        self.patience = timeout
        training = _Training(
            strategy=self,
            grid=grid,
            journal=journal,
            timeout=timeout,
            train_config=train_config or ConfigRecord(),
            evaluate_config=evaluate_config or ConfigRecord(),
            evaluate_fn=evaluate_fn,
        )
        log(INFO, "%s starts: %d rounds", type(self).__name__, num_rounds)
        self.summary()
        return training.run(initial_arrays, num_rounds)


@dataclass(slots=True)
class _Training:
    """One call of `Strategy.start`."""

    strategy: Strategy
    grid: MessageGrid
    journal: Journal
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None

    def run(self, initial_arrays: ArrayRecord, num_rounds: int) -> Result:
        progress = self._begin(initial_arrays)
        if progress.finished:
            log(INFO, "this training has ended in an earlier attempt")
            return progress.result
        started = time.monotonic()
        for server_round in range(progress.round + 1, num_rounds + 1):
            metrics = self._round(server_round, progress)
            log(INFO, "round %d/%d: %s", server_round, num_rounds, _spelled(metrics))
        log(INFO, "%s has ended after %.1f s", type(self.strategy).__name__, time.monotonic() - started)
        return progress.result

    def _begin(self, initial_arrays: ArrayRecord) -> Progress:
        """Go on behind the last committed round, or commit the initial model as round 0."""
        progress = self.journal.resume()
        if progress is not None:
            if not progress.finished:
                log(INFO, "going on behind round %d, which an earlier attempt has committed", progress.round)
                self.strategy.load_state(progress.state)
            return progress
        progress = Progress(0, Result(arrays=ArrayRecord(initial_arrays)))
        metrics = history(server=self._evaluate_on_server(0, progress.result))
        progress.state = self.strategy.save_state()
        self.journal.commit(progress, metrics)
        progress.result.pack()
        if metrics:
            log(INFO, "initial model: %s", _spelled(metrics))
        return progress

    def _round(self, server_round: int, progress: Progress) -> dict[str, float]:
        result = progress.result
        trained = self._train(server_round, result)
        evaluated = self._evaluate_on_nodes(server_round, result)
        measured = self._evaluate_on_server(server_round, result)
        progress.round, progress.state = server_round, self.strategy.save_state()
        metrics = history(server=measured, train=trained, evaluate=evaluated)
        self.journal.commit(progress, metrics)
        result.pack()
        return metrics

    def _train(self, server_round: int, result: Result) -> MetricRecord | None:
        messages = self.strategy.configure_train(server_round, result.arrays, self.train_config, self.grid)
        replies = self._send(messages)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is not None:
            result.arrays = arrays
        if metrics is not None:
            result.train_metrics_clientapp[server_round] = metrics
            self.journal.note(server_round, history(train=metrics))
        return metrics

    def _send(self, messages: Iterable[Message]) -> Iterable[Message]:
        messages = list(messages)  # a generator has said what is enough when it has ended
        deadline, enough = self.strategy.round_deadline, self.strategy.enough
        timeout = self.timeout if deadline is None else min(self.timeout, deadline)
        if enough is None or not isinstance(self.grid, FirstRepliesGrid):
            return self.grid.send_and_receive(messages, timeout=timeout)
        return self.grid.first_replies(messages, enough=enough, timeout=timeout)

    def _evaluate_on_nodes(self, server_round: int, result: Result) -> MetricRecord | None:
        messages = self.strategy.configure_evaluate(server_round, result.arrays, self.evaluate_config, self.grid)
        replies = self._send(messages)
        metrics = self.strategy.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = metrics
            self.journal.note(server_round, history(evaluate=metrics))
        return metrics

    def _evaluate_on_server(self, server_round: int, result: Result) -> MetricRecord | None:
        if self.evaluate_fn is None:
            return None
        metrics = self.evaluate_fn(
            server_round, ArrayRecord(result.arrays)
        )  # a record of its own, to do with as it likes
        if metrics is not None:
            result.evaluate_metrics_serverapp[server_round] = metrics
            self.journal.note(server_round, history(server=metrics))
        return metrics


def _spelled(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "no metrics"
