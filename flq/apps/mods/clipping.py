"""Mods for differential privacy: they clip what a node has trained, and may add noise to it."""

from __future__ import annotations

import math
from logging import INFO

import numpy as np

from flq.apps.clipping import CLIPPING_NORM, NORM_BIT, clipped, noisy
from flq.apps.context import Context
from flq.apps.logger import log
from flq.apps.mods.chain import ClientAppCallable
from flq.wire.message import Error, ErrorCode, Message
from flq.wire.records import ArrayRecord, MetricRecord, RecordDict


class _Unmet(Exception):
    """The message or the reply is not what a mod needs, and how."""


def fixedclipping_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Scale the update of a reply down to the norm that the server asks for.

    For `DifferentialPrivacyClientSideFixedClipping`, which puts `clipping_norm` into the config. The message has one
    ArrayRecord and one ConfigRecord, the reply one ArrayRecord with the same arrays; otherwise the reply is an error
    with code MOD_FAILED_PRECONDITION. So it belongs to training only: `@app.train(mods=[fixedclipping_mod])`.
    """
    return _clipping("fixedclipping_mod", msg, context, call_next, tell=False)


def adaptiveclipping_mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Scale the update of a reply down as `fixedclipping_mod` does, and say in the metric `norm_bit` if it had to be.

    For `DifferentialPrivacyClientSideAdaptiveClipping`. The reply has one MetricRecord, too.
    """
    return _clipping("adaptiveclipping_mod", msg, context, call_next, tell=True)


class LocalDpMod:
    """Local differential privacy: clips the update of a reply, and adds Gaussian noise before it leaves the node.

    Dwork and Roth (2014), "The Algorithmic Foundations of Differential Privacy", appendix A: noise of standard
    deviation sensitivity sqrt(2 ln(1.25 / delta)) / epsilon, which is proved for epsilon < 1. It is drawn from the
    randomness of the operating system, so a task that is done again gets other noise.

    Parameters
    ----------
    clipping_norm
        The L2 norm, over all arrays, that the update is scaled down to.
    sensitivity
        How far the data of the node can move its update: twice the clipping norm, if all of it may be other data.
    epsilon, delta
        The privacy of one reply; both positive, delta less than 1.25.

    """

    def __init__(self, clipping_norm: float, sensitivity: float, epsilon: float, delta: float) -> None:
        if not clipping_norm > 0:
            raise ValueError(f"clipping_norm is {clipping_norm}; it must be positive")
        if not sensitivity >= 0:
            raise ValueError(f"sensitivity is {sensitivity}; it must be 0 or more")
        if not epsilon > 0:
            raise ValueError(f"epsilon is {epsilon}; it must be positive")
        if not 0 < delta < _MOST_DELTA:
            raise ValueError(f"delta is {delta}; it must be more than 0 and less than {_MOST_DELTA}")
        self.clipping_norm = clipping_norm
        self.sensitivity = sensitivity
        self.epsilon = epsilon
        self.delta = delta

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise."""
        return self.sensitivity * math.sqrt(2 * math.log(_MOST_DELTA / self.delta)) / self.epsilon

    def __call__(self, msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer by the rest of the chain, and clip the reply and add noise."""
        try:
            start = _arrays("LocalDpMod", "message", msg.content)[1]
            reply = call_next(msg, context)
            if reply.has_error():
                return reply
            name, trained = _trained("LocalDpMod", reply.content, start)
        except _Unmet as exc:
            return _failed(msg, exc)
        shortened, _ = clipped(trained, start, self.clipping_norm)
        reply.content[name] = noisy(shortened, self.deviation, np.random.default_rng())
        log(INFO, "LocalDpMod: clipped to %g, noise of standard deviation %.4g", self.clipping_norm, self.deviation)
        return reply


_MOST_DELTA = 1.25


def _clipping(mod: str, msg: Message, context: Context, call_next: ClientAppCallable, *, tell: bool) -> Message:
    try:
        norm = _norm(mod, msg.content)
        start = _arrays(mod, "message", msg.content)[1]
        reply = call_next(msg, context)
        if reply.has_error():
            return reply
        name, trained = _trained(mod, reply.content, start)
        metrics = _metrics(mod, reply.content) if tell else MetricRecord()
    except _Unmet as exc:
        return _failed(msg, exc)
    reply.content[name], was_clipped = clipped(trained, start, norm)
    metrics[NORM_BIT] = int(was_clipped)
    log(INFO, "%s: the update %s clipped to %g", mod, "was" if was_clipped else "did not have to be", norm)
    return reply


def _norm(mod: str, content: RecordDict) -> float:
    if len(content.config_records) != 1:
        raise _Unmet(f"{mod} needs exactly one ConfigRecord in the message; it has {len(content.config_records)}")
    norm = next(iter(content.config_records.values())).get(CLIPPING_NORM)
    if norm is None:
        raise _Unmet(
            f"{mod} needs {CLIPPING_NORM!r} in the config, which a DifferentialPrivacyClientSide... strategy of the"
            " ServerApp puts there"
        )
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not norm > 0:
        raise _Unmet(f"{CLIPPING_NORM!r} is {norm!r}; it must be a positive number")
    return float(norm)


def _arrays(mod: str, where: str, content: RecordDict) -> tuple[str, ArrayRecord]:
    if len(content.array_records) != 1:
        raise _Unmet(f"{mod} needs exactly one ArrayRecord in the {where}; it has {len(content.array_records)}")
    return next(iter(content.array_records.items()))


def _trained(mod: str, content: RecordDict, start: ArrayRecord) -> tuple[str, ArrayRecord]:
    name, trained = _arrays(mod, "reply", content)
    if {key: array.shape for key, array in trained.items()} != {key: array.shape for key, array in start.items()}:
        raise _Unmet(f"{mod} needs arrays of the same names and shapes in the reply as in the message; they differ")
    return name, trained


def _metrics(mod: str, content: RecordDict) -> MetricRecord:
    if len(content.metric_records) != 1:
        raise _Unmet(f"{mod} needs exactly one MetricRecord in the reply; it has {len(content.metric_records)}")
    return next(iter(content.metric_records.values()))


def _failed(msg: Message, why: _Unmet) -> Message:
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, str(why)), reply_to=msg)
