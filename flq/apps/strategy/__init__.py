"""Strategies: how a ServerApp turns the replies of its nodes into one model."""

from flq.apps.strategy.aggregate import (
    InconsistentReplies,
    aggregate_arrayrecords,
    aggregate_metricrecords,
    validate_message_reply_consistency,
)
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.result import Result
from flq.apps.strategy.sampling import sample_nodes
from flq.apps.strategy.strategy import Strategy

__all__ = [
    "FedAvg",
    "InconsistentReplies",
    "Result",
    "Strategy",
    "aggregate_arrayrecords",
    "aggregate_metricrecords",
    "sample_nodes",
    "validate_message_reply_consistency",
]
