"""Legacy strategies: they choose clients, and make a model of what these have trained."""

from flq.apps.legacy.strategy.base import Strategy
from flq.apps.legacy.strategy.fedavg import FaultTolerantFedAvg, FedAvg
from flq.apps.legacy.strategy.fedavg_android import FedAvgAndroid
from flq.apps.legacy.strategy.fedavgm import FedAvgM
from flq.apps.legacy.strategy.fedopt import FedAdagrad, FedAdam, FedOpt, FedYogi
from flq.apps.legacy.strategy.fedprox import FedProx
from flq.apps.legacy.strategy.privacy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
from flq.apps.legacy.strategy.qfedavg import QFedAvg
from flq.apps.legacy.strategy.robust import Bulyan, FedMedian, FedTrimmedAvg, Krum
from flq.apps.legacy.strategy.xgboost import FedXgbBagging, FedXgbCyclic

__all__ = [
    "Bulyan",
    "DifferentialPrivacyClientSideAdaptiveClipping",
    "DifferentialPrivacyClientSideFixedClipping",
    "DifferentialPrivacyServerSideAdaptiveClipping",
    "DifferentialPrivacyServerSideFixedClipping",
    "FaultTolerantFedAvg",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgAndroid",
    "FedAvgM",
    "FedMedian",
    "FedOpt",
    "FedProx",
    "FedTrimmedAvg",
    "FedXgbBagging",
    "FedXgbCyclic",
    "FedYogi",
    "Krum",
    "QFedAvg",
    "Strategy",
]
