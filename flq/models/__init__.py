"""The schema: declarative tables in `flq_state` and the views for people in `flq`. No queries."""

from flq.models.base import SCHEMA, VIEW_SCHEMA, Base
from flq.models.federation import Node, Process
from flq.models.objects import Bundle, Object, ObjectChunk, ObjectPin, ObjectRef, ObjectUpload
from flq.models.runs import Artifact, Checkpoint, RoundMetric, Run, RunAttempt, RunEvent
from flq.models.tasks import Batch, ClientState, LogLine, NodeList, Result, Step, Task, TaskAttempt, TaskMessage
from flq.models.upkeep import MaintenanceRun, Setting
from flq.models.views import VIEWS

__all__ = [
    "SCHEMA",
    "VIEWS",
    "VIEW_SCHEMA",
    "Artifact",
    "Base",
    "Batch",
    "Bundle",
    "Checkpoint",
    "ClientState",
    "LogLine",
    "MaintenanceRun",
    "Node",
    "NodeList",
    "Object",
    "ObjectChunk",
    "ObjectPin",
    "ObjectRef",
    "ObjectUpload",
    "Process",
    "Result",
    "RoundMetric",
    "Run",
    "RunAttempt",
    "RunEvent",
    "Setting",
    "Step",
    "Task",
    "TaskAttempt",
    "TaskMessage",
]
