"""Differential privacy around a strategy: updates are clipped, and noise is added to what they are aggregated to."""

from __future__ import annotations

import json
import math
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from logging import INFO, WARNING

import numpy as np

from flq.apps.clipping import CLIPPING_NORM, NORM_BIT, clipped, noisy
from flq.apps.logger import log
from flq.apps.privacy import GaussianPrivacyEvent, PrivacyAccountant, PrivacySpent, SamplingMethod
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.grids import MessageGrid
from flq.apps.strategy.strategy import Strategy
from flq.errors import StrategyError
from flq.wire.message import Error, ErrorCode, Message
from flq.wire.records import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

_PRIVACY = "privacy"
_INNER = "inner."
_KEY_BYTES = 32
_MUCH_NOISE = 2.0


class DifferentialPrivacy(Strategy):
    """What the wrappers share: the strategy inside chooses and aggregates, noise is added to the new model.

    The noise of a round has the standard deviation noise_multiplier * clipping_norm / n, which is for a mean of n
    equally weighted updates, each of which moves it by at most clipping_norm / n; n is num_sampled_clients, or the
    number of replies that were used, if these are fewer. A round with an error among its replies is left out.

    Noise is drawn from a secret of this training that comes from the operating system, never from the seed of the run:
    who knows the noise can take it away. The secret is committed with the state, so that a round that is done again
    after a restart releases the same noise.
    """

    def __init__(self, strategy: Strategy, noise_multiplier: float, num_sampled_clients: int) -> None:
        if not isinstance(strategy, Strategy):
            raise ValueError(f"a strategy is wrapped, not {type(strategy).__name__}")  # noqa: TRY004 - as in Flower
        if noise_multiplier < 0:
            raise ValueError(f"noise_multiplier is {noise_multiplier}; it must be 0 or more")
        if num_sampled_clients <= 0:
            raise ValueError(f"num_sampled_clients is {num_sampled_clients}; it must be positive")
        self.strategy = strategy
        self.noise_multiplier = noise_multiplier
        self.num_sampled_clients = num_sampled_clients
        self.clipping_norm = math.inf
        self.current_arrays: ArrayRecord | None = None
        self._secret = secrets.token_bytes(_KEY_BYTES)

    def summary(self) -> None:
        """Log the settings of both."""
        told = "differential privacy: noise multiplier %g, clipping norm %g, %d nodes in a round"
        log(INFO, told, self.noise_multiplier, self.clipping_norm, self.num_sampled_clients)
        self.strategy.summary()

    def save_state(self) -> RecordDict:
        """The secret that noise is drawn from, and the state of the strategy inside."""
        state = RecordDict({_PRIVACY: ConfigRecord({"secret": self._secret, "clipping-norm": self.clipping_norm})})
        for name, record in self.strategy.save_state().items():
            state[f"{_INNER}{name}"] = record
        return state

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` returned after the last committed round."""
        own = state.config_records[_PRIVACY]
        secret, norm = own["secret"], own["clipping-norm"]
        if not isinstance(secret, bytes) or not isinstance(norm, float):
            raise StrategyError("the checkpoint of the run cannot be read")
        self._secret, self.clipping_norm = secret, norm
        inner = {name.removeprefix(_INNER): state[name] for name in state if name.startswith(_INNER)}
        self.strategy.load_state(RecordDict(inner))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As the strategy inside does."""
        self.current_arrays = ArrayRecord(arrays)
        self._hand_on()
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self.enough, self.round_deadline = self.strategy.enough, self.strategy.round_deadline
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As the strategy inside does."""
        self._hand_on()
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        self.enough, self.round_deadline = self.strategy.enough, self.strategy.round_deadline
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As the strategy inside does."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _hand_on(self) -> None:
        self.strategy.seed, self.strategy.patience = self.seed, self.patience

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy inside makes of the clipped updates, with noise; None if a reply is an error."""
        received = self._on_time(list(replies))
        if not self._complete(server_round, received):
            return None, None
        norm = self.clipping_norm  # that of this round, whatever it is in the next one
        arrays, metrics = self.strategy.aggregate_train(server_round, self.prepared(received))
        self.finish_round(server_round, received, released=arrays is not None)
        if arrays is None:
            return None, metrics
        used = getattr(self.strategy, "used", self.num_sampled_clients)
        deviation = self.noise_multiplier * norm / min(used, self.num_sampled_clients)
        log(INFO, "round %d: noise of standard deviation %.4g is added to the model", server_round, deviation)
        return noisy(arrays, deviation, self.generator(server_round, 0)), metrics

    def _on_time(self, replies: Sequence[Message]) -> list[Message]:
        """Without those that are late: where there are more than enough, so many are left, errors only if need be."""
        if self.enough is None:
            return list(replies)
        return sorted(replies, key=lambda reply: reply.has_error())[: self.enough]

    def _complete(self, server_round: int, replies: Sequence[Message]) -> bool:
        failed = [reply for reply in replies if reply.has_error()]
        for reply in failed:
            log(WARNING, "node %d: %s", reply.metadata.src_node_id, reply.error.reason)
        if failed or not replies:
            told = "round %d: %d of %d replies are errors, so the model stays as it is"
            log(WARNING, told, server_round, len(failed), len(replies))
            return False
        if len(replies) != self.num_sampled_clients:
            told = "round %d: there are %d replies, and num_sampled_clients is %d"
            log(WARNING, told, server_round, len(replies), self.num_sampled_clients)
        return True

    @abstractmethod
    def prepared(self, replies: Sequence[Message]) -> Iterable[Message]:
        """The replies as the strategy inside is to see them."""

    def finish_round(self, server_round: int, replies: Sequence[Message], *, released: bool) -> None:
        """Called when the replies of a round were aggregated, whether a model has come of it or not."""

    def clip(self, reply: Message) -> tuple[Message, bool]:
        """A reply with its update clipped, and whether it had to be.

        A reply whose update cannot be told, since it has other arrays than the node got, becomes an error.
        """
        start = self.current_arrays
        if start is None:
            raise StrategyError("configure_train has to be called before aggregate_train: it keeps the model")
        content, was_clipped = RecordDict(dict(reply.content)), False
        for name, arrays in reply.content.array_records.items():
            if _shapes(arrays) != _shapes(start):
                error = Error(
                    ErrorCode.UNKNOWN, "its arrays are not those that the node got, so they cannot be clipped"
                )
                return Message(error, metadata=reply.metadata), False
            content[name], shortened = clipped(arrays, start, self.clipping_norm)
            was_clipped |= shortened
        return Message(content, metadata=reply.metadata), was_clipped

    def generator(self, server_round: int, purpose: int) -> np.random.Generator:
        """Random numbers that are this round's, and nobody's who does not know the secret."""
        entropy = [int.from_bytes(self._secret, "little"), server_round, purpose]
        return np.random.default_rng(np.random.SeedSequence(entropy))


def _shapes(arrays: ArrayRecord) -> dict[str, tuple[int, ...]]:
    return {key: array.shape for key, array in arrays.items()}


class FixedClipping(DifferentialPrivacy):
    """Clips to a norm that stays the same, and can count what the rounds cost in privacy."""

    def __init__(
        self,
        strategy: Strategy,
        noise_multiplier: float,
        clipping_norm: float,
        num_sampled_clients: int,
        *,
        accountant: PrivacyAccountant | None = None,
    ) -> None:
        super().__init__(strategy, noise_multiplier, num_sampled_clients)
        if clipping_norm <= 0:
            raise ValueError(f"clipping_norm is {clipping_norm}; it must be positive")
        self.clipping_norm = clipping_norm
        self.accountant = accountant
        self._pending: dict[int, GaussianPrivacyEvent] = {}
        if accountant is not None:
            self._check_accountable(accountant)

    def _check_accountable(self, accountant: PrivacyAccountant) -> None:
        if self.noise_multiplier <= 0:
            raise ValueError("without noise there is no privacy to account for: noise_multiplier must be positive")
        if accountant.config.sampling_method is not SamplingMethod.NO_AMPLIFICATION:
            raise ValueError(
                "the rounds of fixed clipping are accounted for with sampling_method NO_AMPLIFICATION only"
            )
        if type(self.strategy).aggregate_train is not FedAvg.aggregate_train:
            raise ValueError("only a mean can be accounted for: the strategy must aggregate as FedAvg does")

    def privacy_spent(self) -> PrivacySpent | None:
        """What has been spent so far; None without an accountant."""
        return None if self.accountant is None else self.accountant.get_privacy_spent()

    def save_state(self) -> RecordDict:
        """What all wrappers carry, and how many rounds the accountant has counted."""
        state = super().save_state()
        if self.accountant is not None:
            state.config_records[_PRIVACY]["accountant"] = json.dumps(self.accountant.state_dict())
        return state

    def load_state(self, state: RecordDict) -> None:
        """Take up what `save_state` returned after the last committed round."""
        super().load_state(state)
        saved = state.config_records[_PRIVACY].get("accountant")
        if self.accountant is not None and isinstance(saved, str):
            self.accountant.load_state_dict(json.loads(saved))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As the strategy inside does. Raises `StrategyError` if the round would spend more than may be spent."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if self.accountant is not None and messages:
            self._pending[server_round] = self._event(len(messages), self.accountant)
        return messages

    def _event(self, asked: int, accountant: PrivacyAccountant) -> GaussianPrivacyEvent:
        count = asked if self.enough is None else self.enough
        if count != self.num_sampled_clients:
            raise StrategyError(
                f"{count} nodes are chosen for a round, and privacy is accounted for {self.num_sampled_clients}",
                hint="let fraction_train and min_train_nodes choose num_sampled_clients nodes",
            )
        event = GaussianPrivacyEvent(
            noise_multiplier=self.noise_multiplier,
            sample_size=count,
            population_size=accountant.config.population_size,
        )
        if accountant.config.max_epsilon is not None and accountant.would_exceed(event):
            spent = accountant.get_privacy_spent()
            raise StrategyError(
                f"one more round would spend more privacy than may be spent: epsilon is {spent.epsilon:.4g} at delta"
                f" {spent.delta:g}, max_epsilon {accountant.config.max_epsilon:g}",
                hint="more noise, fewer rounds, or a higher max_epsilon",
            )
        return event

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy inside makes of the clipped updates, with noise; None if a reply is an error or missing."""
        replies = list(replies)
        if self.accountant is not None:
            on_time = self._on_time(replies)
            if len(on_time) != self.num_sampled_clients or not _equal_weights(on_time, self.strategy):
                told = "round %d: privacy is accounted for %d replies of equal weights; the model stays as it is"
                log(WARNING, told, server_round, self.num_sampled_clients)
                self._pending.pop(server_round, None)
                return None, None
        return super().aggregate_train(server_round, replies)

    def finish_round(self, server_round: int, replies: Sequence[Message], *, released: bool) -> None:  # noqa: ARG002
        """Let the accountant count a model that was released."""
        event = self._pending.pop(server_round, None)
        if self.accountant is not None and event is not None and released:
            self.accountant.compose(event)
            spent = self.accountant.get_privacy_spent()
            log(INFO, "privacy spent: epsilon %.4g at delta %g", spent.epsilon, spent.delta)


def _equal_weights(replies: Sequence[Message], strategy: Strategy) -> bool:
    key = getattr(strategy, "weighted_by_key", "")
    weights = [
        metrics.get(key)
        for reply in replies
        if reply.has_content()
        for metrics in reply.content.metric_records.values()
    ]
    return all(weight == weights[0] for weight in weights)


class DifferentialPrivacyServerSideFixedClipping(FixedClipping):
    """Central differential privacy whose server clips the updates of the nodes to a fixed norm.

    McMahan et al. (2018), "Learning Differentially Private Recurrent Language Models",
    https://arxiv.org/abs/1710.06963. See `DifferentialPrivacy` for the noise. Equal weights are assumed: where the
    nodes' numbers of examples differ, an update can move the mean further.

    Parameters
    ----------
    strategy
        Chooses the nodes and aggregates the clipped replies.
    noise_multiplier
        The standard deviation of the noise on the sum of the updates, in clipping norms; 1 or more gives meaningful
        guarantees.
    clipping_norm
        The L2 norm, over all arrays, that the update of a node is scaled down to.
    num_sampled_clients
        How many nodes take part in a round.
    accountant
        Counts what the rounds cost, and ends the run before more is spent than may be: see `flq.apps.privacy`.

    """

    def prepared(self, replies: Sequence[Message]) -> Iterable[Message]:
        """The replies, each clipped when its turn comes."""
        return (self.clip(reply)[0] for reply in replies)


class DifferentialPrivacyClientSideFixedClipping(FixedClipping):
    """Central differential privacy whose nodes clip their updates themselves, to a fixed norm.

    McMahan et al. (2018), "Learning Differentially Private Recurrent Language Models",
    https://arxiv.org/abs/1710.06963. The nodes get the norm in the config and clip by `fixedclipping_mod`, which the
    ClientApp must have; the server sees clipped updates only, and trusts the nodes in that. The parameters are those of
    `DifferentialPrivacyServerSideFixedClipping`.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As the strategy inside does, with the norm in the config."""
        config = ConfigRecord({**config, CLIPPING_NORM: self.clipping_norm})
        return super().configure_train(server_round, arrays, config, grid)

    def prepared(self, replies: Sequence[Message]) -> Iterable[Message]:
        """The replies as they are."""
        return replies


class AdaptiveClipping(DifferentialPrivacy):
    """Clips to a norm that follows the norms of the updates."""

    def __init__(  # noqa: PLR0917 - the order of Flower (flwr), for apps that give them by position
        self,
        strategy: Strategy,
        noise_multiplier: float,
        num_sampled_clients: int,
        initial_clipping_norm: float = 0.1,
        target_clipped_quantile: float = 0.5,
        clip_norm_lr: float = 0.2,
        clipped_count_stddev: float | None = None,
    ) -> None:
        super().__init__(strategy, noise_multiplier, num_sampled_clients)
        if initial_clipping_norm <= 0:
            raise ValueError(f"initial_clipping_norm is {initial_clipping_norm}; it must be positive")
        if not 0 <= target_clipped_quantile <= 1:
            raise ValueError(f"target_clipped_quantile is {target_clipped_quantile}; it must lie between 0 and 1")
        if clip_norm_lr <= 0:
            raise ValueError(f"clip_norm_lr is {clip_norm_lr}; it must be positive")
        if clipped_count_stddev is not None and clipped_count_stddev < 0:
            raise ValueError(f"clipped_count_stddev is {clipped_count_stddev}; it must be 0 or more")
        self.clipping_norm = initial_clipping_norm
        self.target_clipped_quantile = target_clipped_quantile
        self.clip_norm_lr = clip_norm_lr
        self._clipped = 0
        self.clipped_count_stddev, self.noise_multiplier = noise_for_count(
            noise_multiplier, num_sampled_clients, clipped_count_stddev
        )

    def finish_round(self, server_round: int, replies: Sequence[Message], *, released: bool) -> None:  # noqa: ARG002
        """Move the norm of the next round so that the wanted part of updates is clipped.

        C <- C exp(clip_norm_lr (clipped part - target_clipped_quantile)), with noise on the count.
        """
        noise = self.generator(server_round, 1).normal(0.0, self.clipped_count_stddev)
        part = (self._clipped + noise) / len(replies)
        self.clipping_norm *= math.exp(self.clip_norm_lr * (part - self.target_clipped_quantile))


def noise_for_count(
    noise_multiplier: float, num_sampled_clients: int, clipped_count_stddev: float | None
) -> tuple[float, float]:
    """How noise is shared between the count of clipped updates and the model: theorem 1 of Andrew et al. (2021).

    Returns the standard deviation of the noise on the count, and the noise multiplier of the model, which together
    give the privacy of `noise_multiplier` alone. Raises `ValueError` if the noise on the count is too low for that.
    """
    if noise_multiplier == 0:
        return clipped_count_stddev or 0.0, 0.0
    deviation = num_sampled_clients / 20 if clipped_count_stddev is None else clipped_count_stddev
    if noise_multiplier >= 2 * deviation:
        raise ValueError(
            f"clipped_count_stddev is {deviation:g}, which is too low for a noise_multiplier of {noise_multiplier:g}:"
            " it must be more than half of it. It is num_sampled_clients / 20 unless given"
        )
    of_model = (noise_multiplier**-2 - (2 * deviation) ** -2) ** -0.5
    if of_model >= _MUCH_NOISE * noise_multiplier:
        told = "the noise on the model is %.1f times as large for adaptive clipping: raise clipped_count_stddev"
        log(WARNING, told, of_model / noise_multiplier)
    return deviation, of_model


class DifferentialPrivacyServerSideAdaptiveClipping(AdaptiveClipping):
    """Central differential privacy whose server clips updates to a norm that follows a quantile of their norms.

    Andrew et al. (2021), "Differentially Private Learning with Adaptive Clipping", algorithm 1,
    https://arxiv.org/abs/1905.03871. See `DifferentialPrivacy` for the noise, which is that of the norm that the round
    was clipped by.

    Parameters
    ----------
    strategy
        Chooses the nodes and aggregates the clipped replies.
    noise_multiplier
        The privacy of a round is that of this noise multiplier; the model gets more noise, and the count of clipped
        updates some of its own.
    num_sampled_clients
        How many nodes take part in a round.
    initial_clipping_norm
        The norm of the first round.
    target_clipped_quantile
        Which part of the updates is to be clipped.
    clip_norm_lr
        How fast the norm moves.
    clipped_count_stddev
        The standard deviation of the noise on the count; num_sampled_clients / 20 unless given.

    """

    def prepared(self, replies: Sequence[Message]) -> Iterable[Message]:
        """The replies, each clipped when its turn comes, and counted."""
        return self._clipping(replies)

    def _clipping(self, replies: Sequence[Message]) -> Iterator[Message]:
        self._clipped = 0
        for reply in replies:
            shortened, was_clipped = self.clip(reply)
            self._clipped += was_clipped
            yield shortened


class DifferentialPrivacyClientSideAdaptiveClipping(AdaptiveClipping):
    """Central differential privacy whose nodes clip to a norm that follows a quantile of the norms of updates.

    Andrew et al. (2021), "Differentially Private Learning with Adaptive Clipping", algorithm 1,
    https://arxiv.org/abs/1905.03871. The nodes get the norm in the config, clip by `adaptiveclipping_mod`, which the
    ClientApp must have, and say in the metric `norm_bit` whether they had to. The parameters are those of
    `DifferentialPrivacyServerSideAdaptiveClipping`.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: MessageGrid
    ) -> Iterable[Message]:
        """As the strategy inside does, with the norm in the config."""
        config = ConfigRecord({**config, CLIPPING_NORM: self.clipping_norm})
        return super().configure_train(server_round, arrays, config, grid)

    def prepared(self, replies: Sequence[Message]) -> Iterable[Message]:
        """The replies without their bits, whose mean would tell the count without noise.

        Raises `StrategyError` if one does not say whether it was clipped.
        """
        self._clipped, prepared = 0, []
        for reply in replies:
            content = RecordDict(dict(reply.content))
            bits = [record[NORM_BIT] for record in content.metric_records.values() if NORM_BIT in record]
            if not bits:
                raise StrategyError(
                    f"the reply of node {reply.metadata.src_node_id} has no {NORM_BIT!r} in its metrics",
                    hint="the ClientApp needs mods=[adaptiveclipping_mod]",
                )
            for name, record in content.metric_records.items():
                content[name] = MetricRecord({key: value for key, value in record.items() if key != NORM_BIT})
            self._clipped += any(bits)
            prepared.append(Message(content, metadata=reply.metadata))
        return prepared
