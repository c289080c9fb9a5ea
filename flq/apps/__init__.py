"""What users write against."""

from flq.apps.clientapp import ClientApp
from flq.apps.context import Context, UserConfig, UserConfigValue
from flq.apps.grid import Grid
from flq.apps.logger import log
from flq.apps.serverapp import ServerApp
from flq.wire.message import DEFAULT_TTL, Error, ErrorCode, Message, MessageType, Metadata
from flq.wire.records import (
    Array,
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)

__all__ = [
    "DEFAULT_TTL",
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "ConfigRecordValues",
    "Context",
    "Error",
    "ErrorCode",
    "Grid",
    "Message",
    "MessageType",
    "Metadata",
    "MetricRecord",
    "MetricRecordValues",
    "RecordDict",
    "ServerApp",
    "UserConfig",
    "UserConfigValue",
    "log",
]
