"""The server side of an app."""

from __future__ import annotations

from collections.abc import Callable

from flq.apps.context import Context
from flq.apps.grid import Grid
from flq.apps.lifespan import Lifespan, check_lifespan, lifespan
from flq.errors import AppError

Main = Callable[[Grid, Context], None]


class ServerApp:
    """Leads a run: its `main` is called once in every attempt, from the top.

    Examples
    --------
    >>> from flq.apps import Context, Grid, ServerApp
    >>> app = ServerApp()
    >>> @app.main()
    ... def main(grid: Grid, context: Context) -> None:
    ...     print(len(grid.get_node_ids()), "nodes are online")

    """

    def __init__(self) -> None:
        self._main: Main | None = None
        self._lifespan: Lifespan | None = None

    @property
    def has_main(self) -> bool:
        """Whether a main function is registered."""
        return self._main is not None

    def main(self) -> Callable[[Main], Main]:
        """Register the function that leads a run."""

        def register(function: Main) -> Main:
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
