"""Clients: what a `client_fn` returns, and how a ClientApp answers messages with it."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable
from typing import Any

from flq.apps.context import Context
from flq.apps.legacy import translation
from flq.apps.legacy.parameters import ndarrays_to_parameters, parameters_to_ndarrays
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
    NDArrays,
    Parameters,
    Properties,
    Scalar,
    Status,
)
from flq.errors import AppError
from flq.wire.message import Message, MessageType, split_message_type


class Client(ABC):
    """Trains and evaluates on a node, with parameters in bytes. Every method that is called must be overridden."""

    context: Context

    def get_context(self) -> Context:
        """The context of the message that is being answered."""
        return self.context

    def set_context(self, context: Context) -> None:
        """Take the context of the message that is to be answered."""
        self.context = context

    def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:  # noqa: ARG002 - what is overridden takes it
        """Properties of the client."""
        return GetPropertiesRes(_not_implemented(Code.GET_PROPERTIES_NOT_IMPLEMENTED), {})

    def get_parameters(self, ins: GetParametersIns) -> GetParametersRes:  # noqa: ARG002 - as above
        """The client's present parameters."""
        return GetParametersRes(_not_implemented(Code.GET_PARAMETERS_NOT_IMPLEMENTED), Parameters([], ""))

    def fit(self, ins: FitIns) -> FitRes:  # noqa: ARG002 - as above
        """Train from the given parameters."""
        return FitRes(_not_implemented(Code.FIT_NOT_IMPLEMENTED), Parameters([], ""), 0, {})

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:  # noqa: ARG002 - as above
        """Measure the given parameters."""
        return EvaluateRes(_not_implemented(Code.EVALUATE_NOT_IMPLEMENTED), 0.0, 0, {})

    def to_client(self) -> Client:
        """This client."""
        return self


class NumPyClient(ABC):
    """Trains and evaluates on a node, with parameters as numpy arrays. Override what is called."""

    context: Context

    def get_context(self) -> Context:
        """The context of the message that is being answered."""
        return self.context

    def set_context(self, context: Context) -> None:
        """Take the context of the message that is to be answered."""
        self.context = context

    def get_properties(self, config: Config) -> dict[str, Scalar]:  # noqa: ARG002 - what is overridden takes it
        """Properties of the client."""
        return {}

    def get_parameters(self, config: Config) -> NDArrays:  # noqa: ARG002 - as above
        """The client's present parameters."""
        return []

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:  # noqa: ARG002 - as above
        """Train from `parameters`: new ones, the number of examples, metrics."""
        return [], 0, {}

    def evaluate(self, parameters: NDArrays, config: Config) -> tuple[float, int, dict[str, Scalar]]:  # noqa: ARG002 - as above
        """Measure `parameters`: loss, the number of examples, metrics."""
        return 0.0, 0, {}

    def to_client(self) -> Client:
        """A client that speaks in bytes and calls this one."""
        return _NumPyWrapper(self)


ClientFn = Callable[[Context], Client | NumPyClient]
"""Makes the client that answers a message. The old form takes the node's partition as a string."""


class _NumPyWrapper(Client):
    """Calls a NumPyClient. What it does not override is not implemented, as in a Client."""

    def __init__(self, wrapped: NumPyClient) -> None:
        self.numpy_client = wrapped

    def set_context(self, context: Context) -> None:
        super().set_context(context)
        self.numpy_client.set_context(context)

    def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:
        if not self._overrides("get_properties"):
            return super().get_properties(ins)
        properties: Properties = self.numpy_client.get_properties(ins.config)
        return GetPropertiesRes(_SUCCESS, properties)

    def get_parameters(self, ins: GetParametersIns) -> GetParametersRes:
        if not self._overrides("get_parameters"):
            return super().get_parameters(ins)
        return GetParametersRes(_SUCCESS, ndarrays_to_parameters(self.numpy_client.get_parameters(ins.config)))

    def fit(self, ins: FitIns) -> FitRes:
        if not self._overrides("fit"):
            return super().fit(ins)
        returned = self.numpy_client.fit(parameters_to_ndarrays(ins.parameters), ins.config)
        arrays, examples, metrics = _three("fit", returned, "a list of ndarrays, the number of examples and metrics")
        if not isinstance(arrays, list):
            raise AppError(f"NumPyClient.fit returned {type(arrays).__name__} for its arrays; it must be a list")
        return FitRes(_SUCCESS, ndarrays_to_parameters(arrays), _examples("fit", examples), _metrics("fit", metrics))

    def evaluate(self, ins: EvaluateIns) -> EvaluateRes:
        if not self._overrides("evaluate"):
            return super().evaluate(ins)
        returned = self.numpy_client.evaluate(parameters_to_ndarrays(ins.parameters), ins.config)
        loss, examples, metrics = _three("evaluate", returned, "the loss, the number of examples and metrics")
        return EvaluateRes(_SUCCESS, float(loss), _examples("evaluate", examples), _metrics("evaluate", metrics))

    def _overrides(self, method: str) -> bool:
        return getattr(type(self.numpy_client), method) is not getattr(NumPyClient, method)


_SUCCESS = Status(Code.OK, "Success")


def answer(client_fn: Callable[..., Client | NumPyClient], message: Message, context: Context) -> Message:
    """The reply of the client that `client_fn` makes. Raises `AppError` if it makes none, or what the client raises."""
    client = _made(client_fn, context)
    client.set_context(context)
    content = message.content
    match split_message_type(message.metadata.message_type):
        case (MessageType.TRAIN, "default"):
            records = translation.fitres_to_records(client.fit(translation.records_to_fitins(content)))
        case (MessageType.EVALUATE, "default"):
            records = translation.evaluateres_to_records(client.evaluate(translation.records_to_evaluateins(content)))
        case (MessageType.QUERY, "get_parameters"):
            records = translation.getparametersres_to_records(
                client.get_parameters(translation.records_to_getparametersins(content))
            )
        case (MessageType.QUERY, "get_properties"):
            records = translation.getpropertiesres_to_records(
                client.get_properties(translation.records_to_getpropertiesins(content))
            )
        case _:
            raise AppError(
                f"a client_fn does not answer {message.metadata.message_type}",
                hint="register a handler of the ClientApp for it, as with @app.query()",
            )
    return Message(records, reply_to=message)


def _made(client_fn: Callable[..., Client | NumPyClient], context: Context) -> Client:
    made = client_fn(_partition(context) if _takes_cid(client_fn) else context)
    client = made.to_client() if isinstance(made, NumPyClient) else made
    if not isinstance(client, Client):
        raise AppError(
            f"the client_fn returned {type(made).__name__}; it must return a Client",
            hint="return MyClient(...).to_client()",
        )
    return client


def _takes_cid(client_fn: Callable[..., Any]) -> bool:
    """Whether it has the old form `client_fn(cid: str)`."""
    parameters = list(inspect.signature(client_fn).parameters.values())
    return len(parameters) == 1 and (parameters[0].name == "cid" or parameters[0].annotation in {str, "str"})


def _partition(context: Context) -> str:
    return str(context.node_config.get("partition-id", context.node_id))


def _not_implemented(code: Code) -> Status:
    return Status(code, "Client does not implement `" + code.name.removesuffix("_NOT_IMPLEMENTED").lower() + "`")


_VALUES = 3  # what fit and evaluate return


def _three(method: str, returned: Any, wanted: str) -> tuple[Any, Any, Any]:
    if not isinstance(returned, tuple) or len(returned) != _VALUES:
        what = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
        raise AppError(f"NumPyClient.{method} returned {what}; it must be a tuple of {wanted}")
    return returned


def _examples(method: str, examples: Any) -> int:
    if isinstance(examples, bool) or not hasattr(examples, "__index__"):
        raise AppError(f"NumPyClient.{method} returned {examples!r} for the number of examples; it must be an int")
    return int(examples)


def _metrics(method: str, metrics: Any) -> dict[str, Scalar]:
    if not isinstance(metrics, dict) or not all(isinstance(key, str) for key in metrics):
        raise AppError(f"NumPyClient.{method} returned {metrics!r} for its metrics; it must be a dict with text keys")
    return metrics
