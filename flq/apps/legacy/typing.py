"""The types that legacy clients and strategies exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray as _NDArray

NDArray = _NDArray[Any]
NDArrayInt = _NDArray[np.int_]
NDArrayFloat = _NDArray[np.float64]
NDArrays = list[NDArray]
"""A model: its arrays in a fixed order."""

Scalar = bool | bytes | float | int | str
Value = bool | bytes | float | int | str | list[bool] | list[bytes] | list[float] | list[int] | list[str]
Metrics = dict[str, Scalar]
Config = dict[str, Scalar]
Properties = dict[str, Scalar]

ConfigScalarList = list[int] | list[float] | list[str] | list[bytes] | list[bool]
"""A list in a ConfigRecord."""

MetricScalarList = list[int] | list[float]
"""A list in a MetricRecord."""

MetricsAggregationFn = Callable[[list[tuple[int, Metrics]]], Metrics]
"""Makes one set of metrics of the clients' numbers of examples and metrics."""


class Code(Enum):
    """How a client's call ended."""

    OK = 0
    GET_PROPERTIES_NOT_IMPLEMENTED = 1
    GET_PARAMETERS_NOT_IMPLEMENTED = 2
    FIT_NOT_IMPLEMENTED = 3
    EVALUATE_NOT_IMPLEMENTED = 4


@dataclass
class Status:
    """How a client's call ended, and a word on it."""

    code: Code
    message: str


@dataclass
class Parameters:
    """A model in bytes: one item for each array. `tensor_type` says how they are written, `numpy.ndarray` as `.npy`."""

    tensors: list[bytes]
    tensor_type: str


@dataclass
class GetParametersIns:
    """Asks a client for its parameters."""

    config: Config


@dataclass
class GetParametersRes:
    """A client's parameters."""

    status: Status
    parameters: Parameters


@dataclass
class FitIns:
    """Asks a client to train."""

    parameters: Parameters
    config: Config


@dataclass
class FitRes:
    """What a client has trained."""

    status: Status
    parameters: Parameters
    num_examples: int
    metrics: Metrics


@dataclass
class EvaluateIns:
    """Asks a client to evaluate."""

    parameters: Parameters
    config: Config


@dataclass
class EvaluateRes:
    """What a client has measured."""

    status: Status
    loss: float
    num_examples: int
    metrics: Metrics


@dataclass
class GetPropertiesIns:
    """Asks a client for its properties."""

    config: Config


@dataclass
class GetPropertiesRes:
    """A client's properties."""

    status: Status
    properties: Properties


@dataclass
class ReconnectIns:
    """Asks a client to go away, and to come back after so many seconds."""

    seconds: int | None


@dataclass
class DisconnectRes:
    """Why a client went away."""

    reason: str


@dataclass
class ServerMessage:
    """One of the requests to a client."""

    get_properties_ins: GetPropertiesIns | None = None
    get_parameters_ins: GetParametersIns | None = None
    fit_ins: FitIns | None = None
    evaluate_ins: EvaluateIns | None = None


@dataclass
class ClientMessage:
    """One of the answers of a client."""

    get_properties_res: GetPropertiesRes | None = None
    get_parameters_res: GetParametersRes | None = None
    fit_res: FitRes | None = None
    evaluate_res: EvaluateRes | None = None


class MessageTypeLegacy:
    """The message types of requests that have no category of their own."""

    GET_PROPERTIES = "query.get_properties"
    GET_PARAMETERS = "query.get_parameters"
