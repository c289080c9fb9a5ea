"""Legacy requests and answers as the records of messages, under the names that Flower (flwr) gives them.

    fit       fitins.parameters fitins.config       →  fitres.parameters .num_examples .metrics .status
    evaluate  evaluateins.parameters .config        →  evaluateres.loss .num_examples .metrics .status
    query.get_parameters   getparametersins.config  →  getparametersres.parameters .status
    query.get_properties   getpropertiesins.config  →  getpropertiesres.properties .status

Numbers among a client's metrics also stand in the MetricRecord `<...>res.numbers`, so that the run's history has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from flq.apps.legacy.parameters import arrayrecord_to_parameters, parameters_to_arrayrecord
from flq.apps.legacy.typing import (
    Code,
    Config,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetParametersIns,
    GetParametersRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Metrics,
    Parameters,
    Scalar,
    Status,
)
from flq.errors import AppError
from flq.wire.records import ArrayRecord, ConfigRecord, MetricRecord, RecordDict


def fitins_to_records(ins: FitIns) -> RecordDict:
    """A request to train."""
    return _request("fitins", ins.parameters, ins.config)


def records_to_fitins(content: RecordDict) -> FitIns:
    """The same back."""
    return FitIns(*_requested("fitins", content))


def evaluateins_to_records(ins: EvaluateIns) -> RecordDict:
    """A request to evaluate."""
    return _request("evaluateins", ins.parameters, ins.config)


def records_to_evaluateins(content: RecordDict) -> EvaluateIns:
    """The same back."""
    return EvaluateIns(*_requested("evaluateins", content))


def getparametersins_to_records(ins: GetParametersIns) -> RecordDict:
    """A request for parameters."""
    return RecordDict({"getparametersins.config": _config(ins.config)})


def records_to_getparametersins(content: RecordDict) -> GetParametersIns:
    """The same back."""
    return GetParametersIns(_scalars(content, "getparametersins.config"))


def getpropertiesins_to_records(ins: GetPropertiesIns) -> RecordDict:
    """A request for properties."""
    return RecordDict({"getpropertiesins.config": _config(ins.config)})


def records_to_getpropertiesins(content: RecordDict) -> GetPropertiesIns:
    """The same back."""
    return GetPropertiesIns(_scalars(content, "getpropertiesins.config"))


def fitres_to_records(res: FitRes) -> RecordDict:
    """What a client has trained."""
    return RecordDict(
        {
            "fitres.parameters": parameters_to_arrayrecord(res.parameters),
            "fitres.num_examples": MetricRecord({"num_examples": res.num_examples}),
            "fitres.metrics": _config(res.metrics),
            "fitres.numbers": numbers(res.metrics),
            "fitres.status": _status(res.status),
        }
    )


def records_to_fitres(content: RecordDict) -> FitRes:
    """The same back."""
    return FitRes(
        status=_read_status(content, "fitres.status"),
        parameters=_parameters(content, "fitres.parameters"),
        num_examples=int(_number(content, "fitres.num_examples", "num_examples")),
        metrics=_scalars(content, "fitres.metrics"),
    )


def evaluateres_to_records(res: EvaluateRes) -> RecordDict:
    """What a client has measured."""
    return RecordDict(
        {
            "evaluateres.loss": MetricRecord({"loss": res.loss}),
            "evaluateres.num_examples": MetricRecord({"num_examples": res.num_examples}),
            "evaluateres.metrics": _config(res.metrics),
            "evaluateres.numbers": numbers(res.metrics),
            "evaluateres.status": _status(res.status),
        }
    )


def records_to_evaluateres(content: RecordDict) -> EvaluateRes:
    """The same back."""
    return EvaluateRes(
        status=_read_status(content, "evaluateres.status"),
        loss=float(_number(content, "evaluateres.loss", "loss")),
        num_examples=int(_number(content, "evaluateres.num_examples", "num_examples")),
        metrics=_scalars(content, "evaluateres.metrics"),
    )


def getparametersres_to_records(res: GetParametersRes) -> RecordDict:
    """A client's parameters."""
    return RecordDict(
        {
            "getparametersres.parameters": parameters_to_arrayrecord(res.parameters),
            "getparametersres.status": _status(res.status),
        }
    )


def records_to_getparametersres(content: RecordDict) -> GetParametersRes:
    """The same back."""
    return GetParametersRes(
        _read_status(content, "getparametersres.status"), _parameters(content, "getparametersres.parameters")
    )


def getpropertiesres_to_records(res: GetPropertiesRes) -> RecordDict:
    """A client's properties."""
    return RecordDict(
        {
            "getpropertiesres.properties": _config(res.properties),
            "getpropertiesres.status": _status(res.status),
        }
    )


def records_to_getpropertiesres(content: RecordDict) -> GetPropertiesRes:
    """The same back."""
    return GetPropertiesRes(
        _read_status(content, "getpropertiesres.status"), _scalars(content, "getpropertiesres.properties")
    )


def numbers(metrics: Metrics) -> MetricRecord:
    """The numbers among a client's metrics."""
    return MetricRecord(
        {key: value for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    )


def _request(name: str, parameters: Parameters, config: Config) -> RecordDict:
    return RecordDict({f"{name}.parameters": parameters_to_arrayrecord(parameters), f"{name}.config": _config(config)})


def _requested(name: str, content: RecordDict) -> tuple[Parameters, Config]:
    return _parameters(content, f"{name}.parameters"), _scalars(content, f"{name}.config")


def _config(values: Mapping[str, Scalar]) -> ConfigRecord:
    return ConfigRecord(dict(values))


def _status(status: Status) -> ConfigRecord:
    return ConfigRecord({"code": status.code.value, "message": status.message})


def _read_status(content: RecordDict, name: str) -> Status:
    found = _scalars(content, name)
    return Status(Code(found.get("code", 0)), str(found.get("message", "")))


def _parameters(content: RecordDict, name: str) -> Parameters:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise _missing(content, name, "ArrayRecord")
    return arrayrecord_to_parameters(record)


def _scalars(content: RecordDict, name: str) -> dict[str, Scalar]:
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise _missing(content, name, "ConfigRecord")
    return cast("dict[str, Scalar]", dict(record))


def _number(content: RecordDict, name: str, key: str) -> float:
    record = content.get(name)
    if not isinstance(record, MetricRecord) or isinstance(record.get(key), list | None):
        raise _missing(content, name, "MetricRecord")
    return cast("float", record[key])


def _missing(content: RecordDict, name: str, kind: str) -> AppError:
    return AppError(
        f"the message has no {kind} {name!r}; it has: {', '.join(content) or 'nothing'}",
        hint="a ServerApp made of a legacy strategy talks to a ClientApp made of a client_fn",
    )
