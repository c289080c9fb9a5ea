"""The server side of an app."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flq.apps.context import Context
from flq.apps.grid import Grid
from flq.apps.lifespan import Lifespan, check_lifespan, lifespan
from flq.errors import AppError

if TYPE_CHECKING:
    from flq.apps.legacy.clients import ClientManager
    from flq.apps.legacy.server import Server, ServerConfig, ServerFn
    from flq.apps.legacy.strategy import Strategy

Main = Callable[[Grid, Context], None]


class ServerApp:
    """Leads a run: its `main` is called once in every attempt, from the top.

    Parameters
    ----------
    server, config, strategy, client_manager
        The parts of an app of the older kind, which has no main function: see `flq.apps.legacy`.
    server_fn
        Makes them of the context.

    Examples
    --------
    >>> from flq.apps import Context, Grid, ServerApp
    >>> app = ServerApp()
    >>> @app.main()
    ... def main(grid: Grid, context: Context) -> None:
    ...     print(len(grid.get_node_ids()), "nodes are online")

    """

    def __init__(
        self,
        server: Server | None = None,
        config: ServerConfig | None = None,
        strategy: Strategy | None = None,
        client_manager: ClientManager | None = None,
        server_fn: ServerFn | None = None,
    ) -> None:
        self._lifespan: Lifespan | None = None
        given = (server, config, strategy, client_manager)
        if server_fn is not None and any(part is not None for part in given):
            raise ValueError("a ServerApp takes a server_fn or the parts that it would return, not both")
        self._legacy = server_fn is not None or any(part is not None for part in given)
        self._main: Main | None = _legacy_main(server_fn, given) if self._legacy else None

    @property
    def has_main(self) -> bool:
        """Whether a main function is registered."""
        return self._main is not None

    def main(self) -> Callable[[Main], Main]:
        """Register the function that leads a run."""

        def register(function: Main) -> Main:
            if self._legacy:
                raise ValueError("the ServerApp has a server_fn or a strategy; it cannot have a main function, too")
            if self._main is not None:
                raise ValueError("the ServerApp has a main function already")
            self._main = function
            return function

        return register

    def lifespan(self) -> Callable[[Lifespan], Lifespan]:
        """Register a generator that runs around `main`: set up, `yield`, tear down."""

        def register(function: Lifespan) -> Lifespan:
            if self._lifespan is not None:
                raise ValueError("the ServerApp has a lifespan already")
            self._lifespan = check_lifespan(function)
            return function

        return register

    def __call__(self, grid: Grid, context: Context) -> None:
        """Lead a run. Raises `AppError` if no main function is registered, else what it raises."""
        if self._main is None:
            raise AppError("the ServerApp has no main function", hint="register one with @app.main()")
        with lifespan(self._lifespan, context):
            self._main(grid, context)


def _legacy_main(server_fn: ServerFn | None, given: tuple[Any, ...]) -> Main:
    def main(grid: Grid, context: Context) -> None:
        from flq.apps.legacy.server import ServerAppComponents, lead

        server, config, strategy, client_manager = given
        made = (
            ServerAppComponents(server=server, config=config, strategy=strategy, client_manager=client_manager)
            if server_fn is None
            else server_fn(context)
        )
        if not isinstance(made, ServerAppComponents):
            raise AppError(f"the server_fn returned {type(made).__name__}; it must return ServerAppComponents")
        lead(grid, made)

    return main
