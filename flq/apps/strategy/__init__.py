"""Strategies: how a ServerApp turns the replies of its nodes into one model."""

from flq.apps.strategy.aggregate import (
    aggregate_arrayrecords,
    aggregate_metricrecords,
    validate_message_reply_consistency,
)
from flq.apps.strategy.bulyan import Bulyan
from flq.apps.strategy.fedavg import FedAvg
from flq.apps.strategy.fedavgm import FedAvgM
from flq.apps.strategy.fedopt import FedAdagrad, FedAdam, FedOpt, FedYogi
from flq.apps.strategy.fedprox import FedProx
from flq.apps.strategy.fold import InconsistentReplies
from flq.apps.strategy.krum import Krum, MultiKrum, select_krum_repeatedly, select_multikrum
from flq.apps.strategy.median import FedMedian, FedTrimmedAvg
from flq.apps.strategy.privacy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
from flq.apps.strategy.qfedavg import QFedAvg
from flq.apps.strategy.result import Result
from flq.apps.strategy.sampling import sample_nodes
from flq.apps.strategy.strategy import Strategy
from flq.apps.strategy.xgboost import FedXgbBagging, FedXgbCyclic

__all__ = [
    "Bulyan",
    "DifferentialPrivacyClientSideAdaptiveClipping",
    "DifferentialPrivacyClientSideFixedClipping",
    "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyServerSideFixedClipping",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedOpt",
    "FedProx",
    "FedTrimmedAvg",
    "FedXgbBagging",
    "FedXgbCyclic",
    "FedYogi",
    "InconsistentReplies",
    "Krum",
    "MultiKrum",
    "QFedAvg",
    "Result",
    "Strategy",
    "aggregate_arrayrecords",
    "aggregate_metricrecords",
    "sample_nodes",
    "select_krum_repeatedly",
    "select_multikrum",
    "validate_message_reply_consistency",
]
