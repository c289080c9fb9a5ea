"""What an app is told of its run and its node."""

from __future__ import annotations

from dataclasses import dataclass

from flq.wire.records import RecordDict
from flq.wire.runs import ConfigValue

UserConfigValue = ConfigValue
"""A value of a run's or a node's configuration."""

UserConfig = dict[str, ConfigValue]
"""A configuration: flat, with dotted keys."""


@dataclass
class Context:
    """The circumstances of a ServerApp or of one message's handling by a ClientApp.

    Attributes
    ----------
    run_id, node_id
        The run, and the node that the app runs on (1 for a ServerApp).
    node_config
        The node's configuration, for example `partition-id` and `num-partitions`.
    state
        Records that a ClientApp keeps from one message of its run to the next on the same node.
    run_config
        The run's configuration: the defaults of the project with the overrides of `flq run`.
    series_id
        Always 0; here for apps that read it.
    attempt
        Counts from 1: the attempt of the run (ServerApp) or of the task (ClientApp).

    """

    run_id: int
    node_id: int
    node_config: UserConfig
    state: RecordDict
    run_config: UserConfig
    series_id: int = 0
    attempt: int = 1
