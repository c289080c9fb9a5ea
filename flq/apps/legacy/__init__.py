"""The API of apps that were written before messages: clients with `fit` and `evaluate`, and strategies that call them.

Names and behaviour are those of Flower (flwr) before its message API, so that such apps run as they are. New apps are
better off with `flq.apps` and `flq.apps.strategy`, whose replies stream and whose rounds are committed one by one.
"""

from flq.apps.legacy.client import Client, ClientFn, NumPyClient
from flq.apps.legacy.clients import ClientManager, ClientProxy, Criterion, SimpleClientManager
from flq.apps.legacy.history import History
from flq.apps.legacy.parameters import (
    array_from_numpy,
    bytes_to_ndarray,
    ndarray_to_bytes,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flq.apps.legacy.server import Server, ServerAppComponents, ServerConfig
from flq.apps.legacy.workflow import DefaultWorkflow, LegacyContext

__all__ = [
    "Client",
    "ClientFn",
    "ClientManager",
    "ClientProxy",
    "Criterion",
    "DefaultWorkflow",
    "History",
    "LegacyContext",
    "NumPyClient",
    "Server",
    "ServerAppComponents",
    "ServerConfig",
    "SimpleClientManager",
    "array_from_numpy",
    "bytes_to_ndarray",
    "ndarray_to_bytes",
    "ndarrays_to_parameters",
    "parameters_to_ndarrays",
]
