"""The exception tree of flq.

Every error that flq raises on purpose is an `FlqError`: it has a message that names the thing, a
`code` for programs, an `exit_code` for shells and, where there is one, a `hint` that names the way out.

    FlqError                      1
    ├── UsageError                2   the command line or the project is wrong
    │   ├── ProjectError
    │   │   └── BundleError
    │   └── RunConfigError
    ├── TimeoutPassed             3   `--timeout` passed
    ├── Interrupted             130   Ctrl-C
    ├── NotAllowed                4
    ├── Unreachable               5
    │   ├── DatabaseUnreachable
    │   │   ├── DatabaseFull          no more connections, or no more room on its disk
    │   │   └── DatabaseRefused   4   user, password or access rules
    │   └── BrokerUnreachable
    ├── SchemaError               1   the database is at another revision than this flq
    ├── WireError                 1
    │   └── CodecError                bytes that are no message of ours
    ├── LinkError                 1
    │   ├── RunUnknown, NodeUnknown, ObjectUnknown, ArtifactUnknown, CheckpointUnknown
    │   ├── NodesMissing              fewer nodes are online than a run requires
    │   ├── IllegalTransition
    │   ├── AttemptFenced             another attempt has taken the run over
    │   ├── Superseded                another process hosts this node now
    │   ├── ObjectsMissing            a message names objects that are not stored
    │   ├── ObjectCorrupt
    │   ├── QuotaExceeded             the run may not have so many open tasks, or store so much
    │   └── QueryError                `flq sql` was given a statement that fails
    ├── AppError                  1
    │   ├── AppLoadError
    │   │   └── DependencyMissing
    │   └── StrategyError
    └── LocalError                1   the embedded federation, and what it needs of this machine
        ├── FederationRunning
        ├── DiskFull
        ├── PortTaken
        └── ServerFailed
"""

from __future__ import annotations

from typing import ClassVar


class FlqError(Exception):
    """Something went wrong in flq."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])
        self.hint = hint

    @property
    def message(self) -> str:
        """What happened, in one sentence."""
        return str(self)


class UsageError(FlqError):
    """The command line is wrong."""

    code = "usage"
    exit_code = 2


class ProjectError(UsageError):
    """The app project is wrong."""

    code = "project"


class BundleError(ProjectError):
    """The app project cannot be packed, or a bundle cannot be trusted."""

    code = "bundle"


class RunConfigError(UsageError):
    """A `--run-config` or `--node-config` value is wrong."""

    code = "run_config"


class TimeoutPassed(FlqError):
    """The time given by `--timeout` passed."""

    code = "timeout"
    exit_code = 3


class Interrupted(FlqError):
    """Ctrl-C ended the command."""

    code = "interrupted"
    exit_code = 130


class NotAllowed(FlqError):
    """This is not allowed."""

    code = "not_allowed"
    exit_code = 4


class Unreachable(FlqError):
    """A server cannot be reached."""

    code = "unreachable"
    exit_code = 5


class DatabaseUnreachable(Unreachable):
    """PostgreSQL cannot be reached."""

    code = "database_unreachable"


class DatabaseFull(DatabaseUnreachable):
    """PostgreSQL has no room."""

    code = "database_full"


class DatabaseRefused(DatabaseUnreachable):
    """PostgreSQL does not let us in."""

    code = "database_refused"
    exit_code = 4


class BrokerUnreachable(Unreachable):
    """The Celery broker cannot be reached."""

    code = "broker_unreachable"


class SchemaError(FlqError):
    """The database is at another schema revision than this flq needs."""

    code = "schema"


class WireError(FlqError):
    """Something that crosses a process border is malformed."""

    code = "wire"


class CodecError(WireError):
    """These bytes are no message that this flq can read."""

    code = "codec"


class LinkError(FlqError):
    """The SuperLink refused."""

    code = "link"


class RunUnknown(LinkError):
    """There is no such run."""

    code = "run_unknown"


class NodeUnknown(LinkError):
    """There is no such node."""

    code = "node_unknown"


class NodesMissing(LinkError):
    """Too few nodes are online."""

    code = "nodes_missing"


class ObjectUnknown(LinkError):
    """There is no such object."""

    code = "object_unknown"


class ArtifactUnknown(LinkError):
    """The run has no such artifact."""

    code = "artifact_unknown"


class CheckpointUnknown(LinkError):
    """The run keeps no checkpoint of this round."""

    code = "checkpoint_unknown"


class IllegalTransition(LinkError):
    """The run is not in a state from which this is possible."""

    code = "illegal_transition"


class AttemptFenced(LinkError):
    """Another attempt has taken this run over, or the run has ended."""

    code = "attempt_fenced"


class Superseded(LinkError):
    """Another process hosts these nodes now."""

    code = "superseded"


class ObjectsMissing(LinkError):
    """A message names objects that are not stored."""

    code = "objects_missing"

    def __init__(self, hashes: frozenset[bytes]) -> None:
        super().__init__(f"{len(hashes)} objects are not stored")
        self.hashes = hashes


class ObjectCorrupt(LinkError):
    """A stored object does not have the hash that it is stored under."""

    code = "object_corrupt"


class QuotaExceeded(LinkError):
    """The run has reached one of its limits.

    `passes` says whether there will be room once open tasks have finished: then the same call can be made again.
    """

    code = "quota_exceeded"

    def __init__(self, message: str, *, passes: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.passes = passes


class QueryError(LinkError):
    """PostgreSQL refused the query."""

    code = "query"


class AppError(FlqError):
    """The app failed."""

    code = "app"


class AppLoadError(AppError):
    """The app cannot be loaded."""

    code = "app_load"


class DependencyMissing(AppLoadError):
    """Something that the app depends on is not installed."""

    code = "dependency_missing"


class StrategyError(AppError):
    """The strategy cannot go on."""

    code = "strategy"


class LocalError(FlqError):
    """The embedded federation cannot do this."""

    code = "local"


class FederationRunning(LocalError):
    """The embedded federation is already running."""

    code = "federation_running"


class DiskFull(LocalError):
    """There is no room on the disk."""

    code = "disk_full"


class PortTaken(LocalError):
    """An address is in use, or not of this machine."""

    code = "port_taken"


class ServerFailed(LocalError):
    """A process of the embedded federation did not come up."""

    code = "server_failed"
