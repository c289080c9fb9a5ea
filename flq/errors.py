"""The exception tree of flq.

Every error that flq raises on purpose is an `FlqError`: it has a message that names the thing, a
`code` for programs, an `exit_code` for shells and, where there is one, a `hint` that names the way out.

    FlqError                      1
    ├── UsageError                2   the command line or the project is wrong
    │   ├── ProjectError
    │   │   └── BundleError
    │   └── RunConfigError
    ├── TimeoutPassed             3   `--timeout` passed
    ├── NotAllowed                4
    ├── Unreachable               5
    │   ├── DatabaseUnreachable
    │   └── BrokerUnreachable
    ├── SchemaError               1   the database is at another revision than this flq
    ├── WireError                 1
    │   └── CodecError                bytes that are no message of ours
    ├── LinkError                 1
    │   ├── RunUnknown, NodeUnknown, ObjectUnknown, ArtifactUnknown
    │   ├── IllegalTransition
    │   ├── AttemptFenced             another attempt has taken the run over
    │   ├── Superseded                another process hosts this node now
    │   ├── ObjectsMissing            a message names objects that are not stored
    │   ├── ObjectCorrupt
    │   └── QueryError                `flq sql` was given a statement that fails
    ├── AppError                  1
    │   ├── AppLoadError
    │   └── StrategyError
    └── LocalError                1   the embedded federation
        ├── FederationRunning
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


class ObjectUnknown(LinkError):
    """There is no such object."""

    code = "object_unknown"


class ArtifactUnknown(LinkError):
    """The run has no such artifact."""

    code = "artifact_unknown"


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


class QueryError(LinkError):
    """PostgreSQL refused the query."""

    code = "query"


class AppError(FlqError):
    """The app failed."""

    code = "app"


class AppLoadError(AppError):
    """The app cannot be loaded."""

    code = "app_load"


class StrategyError(AppError):
    """The strategy cannot go on."""

    code = "strategy"


class LocalError(FlqError):
    """The embedded federation cannot do this."""

    code = "local"


class FederationRunning(LocalError):
    """The embedded federation is already running."""

    code = "federation_running"


class ServerFailed(LocalError):
    """A process of the embedded federation did not come up."""

    code = "server_failed"
