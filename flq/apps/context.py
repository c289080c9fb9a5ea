"""What an app is told of its run and its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flq.apps.checkpoints import Checkpoints
from flq.errors import AppError
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
    checkpoints
        What `checkpoint` and `restored` of a ServerApp rest on; a ClientApp has none.

    """

    run_id: int
    node_id: int
    node_config: UserConfig
    state: RecordDict
    run_config: UserConfig
    series_id: int = 0
    attempt: int = 1
    checkpoints: Checkpoints | None = field(default=None, repr=False, compare=False)

    @property
    def restored(self) -> RecordDict | None:
        """The state of the last `checkpoint` of this run, or None: for a ServerApp that does not use `Strategy.start`.

        The first look at it is where the loop goes on: what `main` does before is repeated in every attempt, what it
        did from there up to the checkpoint is not done again. The generators of `random`, numpy and torch get the
        states that they had at the checkpoint.

        Raises
        ------
        AppError
            In a ClientApp, or if the run has commits of `Strategy.start`.

        """
        return self._own_checkpoints().restored

    def checkpoint(
        self,
        state: RecordDict,
        *,
        round: int | None = None,  # noqa: A002 - the word of the field
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Commit `state`, which `restored` is in a later attempt of the run: for loops without `Strategy.start`.

        Replies to messages that were sent before are released by it, unless they are still to be pulled.

        Parameters
        ----------
        state
            All that the loop needs to go on from here, as it is now.
        round
            The number that the round has in `flq show`, from 0 on and rising; without it rounds are counted from 1.
        metrics
            Named numbers of the round, for its history.

        Raises
        ------
        AppError
            In a ClientApp, if `round` does not rise, or if the run has commits of `Strategy.start`.
        AttemptFenced
            If another attempt has taken the run over.

        """
        self._own_checkpoints().commit(state, server_round=round, metrics=metrics or {})

    def _own_checkpoints(self) -> Checkpoints:
        if self.checkpoints is None:
            raise AppError(
                "only the ServerApp of a run has checkpoints",
                hint="a ClientApp keeps records in context.state from one message to the next",
            )
        return self.checkpoints
