"""The names of Flower (flwr) that flq has, by module, and where they stand here: what `alias` resolves.

A value is `module:name`. `ABSENT` says of names that apps may look for why flq does not have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

FLOWER_VERSION: Final = "1.41.0"
"""The version of Flower (flwr) whose API this is: what `flwr.__version__` says."""


def _from(source: str, *names: str) -> dict[str, str]:
    return {name: f"{source}:{name}" for name in names}


_RECORDS = _from(
    "flq.wire.records",
    "Array",
    "ArrayRecord",
    "ConfigRecord",
    "ConfigRecordValues",
    "ConfigScalar",
    "MetricRecord",
    "MetricRecordValues",
    "MetricScalar",
    "RecordDict",
) | _from("flq.apps.legacy.typing", "ConfigScalarList", "MetricScalarList")

_OLD_RECORDS = {
    "ParametersRecord": "flq.wire.records:ArrayRecord",
    "MetricsRecord": "flq.wire.records:MetricRecord",
    "ConfigsRecord": "flq.wire.records:ConfigRecord",
    "RecordSet": "flq.wire.records:RecordDict",
}

_MESSAGES = _from("flq.wire.message", "DEFAULT_TTL", "Error", "Message", "MessageType", "Metadata")
_CONTEXT = _from("flq.apps.context", "Context", "UserConfig", "UserConfigValue")
_APP = {**_RECORDS, **_MESSAGES, **_CONTEXT}

_TYPES = _from(
    "flq.apps.legacy.typing",
    "ClientMessage",
    "Code",
    "Config",
    "DisconnectRes",
    "EvaluateIns",
    "EvaluateRes",
    "FitIns",
    "FitRes",
    "GetParametersIns",
    "GetParametersRes",
    "GetPropertiesIns",
    "GetPropertiesRes",
    "Metrics",
    "MetricsAggregationFn",
    "NDArray",
    "NDArrayFloat",
    "NDArrayInt",
    "NDArrays",
    "Parameters",
    "Properties",
    "ReconnectIns",
    "Scalar",
    "ServerMessage",
    "Status",
    "Value",
)

_CONVERSIONS = _from(
    "flq.apps.legacy.parameters",
    "array_from_numpy",
    "bytes_to_ndarray",
    "ndarray_to_bytes",
    "ndarrays_to_parameters",
    "now",
    "parameters_to_ndarrays",
)

_LOG = _from("flq.apps.logger", "log")
_LEGACY_TYPE = _from("flq.apps.legacy.typing", "MessageTypeLegacy")

_COMMON = {**_APP, **_OLD_RECORDS, **_TYPES, **_CONVERSIONS, **_LOG, **_LEGACY_TYPE}

_STRATEGIES = _from(
    "flq.apps.strategy",
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
    "Krum",
    "MultiKrum",
    "QFedAvg",
    "Result",
    "Strategy",
)

_STRATEGY_TOOLS = {
    **_from(
        "flq.apps.strategy",
        "aggregate_arrayrecords",
        "aggregate_metricrecords",
        "sample_nodes",
        "validate_message_reply_consistency",
    ),
    "InconsistentMessageReplies": "flq.apps.strategy:InconsistentReplies",
}

_ACCOUNTING = _from(
    "flq.apps.privacy",
    "GaussianPrivacyEvent",
    "NeighboringRelation",
    "PrivacyAccountant",
    "PrivacyConfig",
    "PrivacySpent",
    "RdpAccountant",
    "SamplingMethod",
)

_GRID = {"Grid": "flq.apps.grid:Grid", "Driver": "flq.apps.grid:Grid"}
_SERVERAPP = _from("flq.apps.serverapp", "ServerApp")
_CLIENTAPP = _from("flq.apps.clientapp", "ClientApp")
_CALLABLES = _from("flq.apps.mods", "ClientAppCallable", "Mod")
_SIZE_MODS = _from("flq.apps.mods", "arrays_size_mod", "message_size_mod")
_PRIVACY_MODS = ("LocalDpMod", "adaptiveclipping_mod", "fixedclipping_mod")

_CLIENTS = _from("flq.apps.legacy.clients", "ClientManager", "ClientProxy", "Criterion", "SimpleClientManager")
_SERVER = _from("flq.apps.legacy.server", "Server", "ServerAppComponents", "ServerConfig")
_WORKFLOW = _from("flq.apps.legacy.workflow", "DefaultWorkflow", "LegacyContext")
_HISTORY = _from("flq.apps.legacy.history", "History")

_LEGACY_STRATEGIES = _from(
    "flq.apps.legacy.strategy",
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
)

_LEGACY_AGGREGATION = _from(
    "flq.apps.legacy.strategy.aggregate",
    "aggregate",
    "aggregate_bulyan",
    "aggregate_inplace",
    "aggregate_krum",
    "aggregate_median",
    "aggregate_qffl",
    "aggregate_trimmed_avg",
    "weighted_loss_avg",
)


def _each(parent: str, children: Iterable[str], names: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """The same names in each of some modules: apps import a strategy from the package or from its own module."""
    return {f"{parent}.{child}": names for child in children}


MODULES: Final[Mapping[str, Mapping[str, str]]] = {
    "flwr": {},
    "flwr.app": _APP,
    "flwr.serverapp": {**_GRID, **_SERVERAPP, **_ACCOUNTING},
    "flwr.serverapp.strategy": {**_STRATEGIES, **_STRATEGY_TOOLS},
    **_each(
        "flwr.serverapp.strategy",
        (
            "bulyan", "dp_adaptive_clipping", "dp_fixed_clipping", "fedadagrad", "fedadam", "fedavg", "fedavgm",
            "fedmedian", "fedopt", "fedprox", "fedtrimmedavg", "fedxgb_bagging", "fedxgb_cyclic", "fedyogi", "krum",
            "multikrum", "qfedavg", "result", "strategy",
        ),
        _STRATEGIES,
    ),
    "flwr.serverapp.strategy.strategy_utils": _STRATEGY_TOOLS,
    "flwr.clientapp": _CLIENTAPP,
    "flwr.clientapp.mod": {**_SIZE_MODS, **_from("flq.apps.mods", *_PRIVACY_MODS)},
    "flwr.clientapp.typing": _CALLABLES,
    "flwr.common": _COMMON,
    "flwr.common.logger": {**_LOG, "FLOWER_LOGGER": "flq.apps.logger:logger"},
    "flwr.common.typing": {**_TYPES, **_from("flq.apps.context", "UserConfig", "UserConfigValue")},
    "flwr.common.parameter": _CONVERSIONS,
    "flwr.common.record": {**_RECORDS, **_OLD_RECORDS},
    "flwr.common.message": _MESSAGES,
    "flwr.common.context": _CONTEXT,
    "flwr.common.constant": {
        **_from("flq.wire.message", "ErrorCode", "MessageType"),
        **_LEGACY_TYPE,
        "SUPERLINK_NODE_ID": "flq.wire.ids:SUPERLINK_NODE_ID",
    },
    "flwr.client": {**_CLIENTAPP, **_from("flq.apps.legacy.client", "Client", "ClientFn", "NumPyClient")},
    "flwr.client.typing": {**_CALLABLES, **_from("flq.apps.legacy.client", "ClientFn")},
    "flwr.client.mod": {**_SIZE_MODS, **_from("flq.apps.legacy.mods", *_PRIVACY_MODS)},
    "flwr.server": {**_GRID, **_SERVERAPP, **_CLIENTS, **_SERVER, **_WORKFLOW, **_HISTORY},
    "flwr.server.client_manager": _CLIENTS,
    "flwr.server.client_proxy": _CLIENTS,
    "flwr.server.criterion": _CLIENTS,
    "flwr.server.history": _HISTORY,
    "flwr.server.server": _SERVER,
    "flwr.server.server_config": _SERVER,
    "flwr.server.compat": _WORKFLOW,
    "flwr.server.workflow": _WORKFLOW,
    "flwr.server.strategy": _LEGACY_STRATEGIES,
    **_each(
        "flwr.server.strategy",
        (
            "bulyan", "dp_adaptive_clipping", "dp_fixed_clipping", "fault_tolerant_fedavg", "fedadagrad", "fedadam",
            "fedavg", "fedavg_android", "fedavgm", "fedmedian", "fedopt", "fedprox", "fedtrimmedavg",
            "fedxgb_bagging", "fedxgb_cyclic", "fedyogi", "krum", "qfedavg", "strategy",
        ),
        _LEGACY_STRATEGIES,
    ),
    "flwr.server.strategy.aggregate": _LEGACY_AGGREGATION,
    "flwr.simulation": {"run_simulation": "flq.local.simulation:run_simulation"},
}  # fmt: skip

_TRANSPORT = "it is part of Flower's transport; nodes are connected with `flq supernode`, apps run with `flq run`"
_RETIRED = "Flower itself has retired it"
_TELEMETRY = "flq sends no telemetry"

ABSENT: Final[Mapping[str, Mapping[str, str]]] = {
    "flwr": {"agentapp": "flq has no AgentApps"},
    "flwr.client": {"start_client": _TRANSPORT, "start_numpy_client": _TRANSPORT},
    "flwr.client.mod": {
        "make_ffn": "it is internal; give `mods` to the ClientApp",
        "secagg_mod": "secure aggregation is not offered",
        "secaggplus_mod": "secure aggregation is not offered",
    },
    "flwr.common": {
        "EventType": _TELEMETRY,
        "GRPC_MAX_MESSAGE_LENGTH": _TRANSPORT,
        "configure": "`flq logs` keeps what an app logs; use Python's logging for a file of its own",
        "event": _TELEMETRY,
    },
    "flwr.server": {"start_server": _TRANSPORT},
    "flwr.server.compat": {"start_grid": "it is internal; give `server_fn` to the ServerApp"},
    "flwr.server.strategy": {
        "DPFedAvgAdaptive": f"{_RETIRED}: DifferentialPrivacyServerSideAdaptiveClipping takes its place",
        "DPFedAvgFixed": f"{_RETIRED}: DifferentialPrivacyServerSideFixedClipping takes its place",
        "FedXgbNnAvg": f"{_RETIRED}: FedXgbBagging takes its place",
    },
    "flwr.server.workflow": {
        "SecAggPlusWorkflow": "secure aggregation is not offered",
        "SecAggWorkflow": "secure aggregation is not offered",
    },
    "flwr.simulation": {
        "SimulationIoConnection": "it is internal",
        "run_simulation_process": "it is internal",
        "start_simulation": f"{_RETIRED}: run_simulation takes its place",
    },
}
