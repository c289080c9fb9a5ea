from __future__ import annotations

from collections.abc import Iterator

import pytest

from flq.apps import Context, Grid, RecordDict, ServerApp
from flq.errors import AppError
from tests.grid_double import GridDouble


def grid() -> Grid:
    return Grid(GridDouble(lambda _message: RecordDict()))


def context() -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"rounds": 3}, attempt=2)


def test_main_is_called_with_grid_and_context() -> None:
    app = ServerApp()
    seen: list[object] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        seen.extend([grid.get_node_ids(), context.run_config["rounds"], context.attempt])

    app(grid(), context())
    assert seen == [[2, 3], 3, 2]


def test_without_a_main_it_says_so() -> None:
    with pytest.raises(AppError, match="no main function") as caught:
        ServerApp()(grid(), context())
    assert caught.value.hint == "register one with @app.main()"


def test_there_is_one_main() -> None:
    app = ServerApp()

    @app.main()
    def main(_grid: Grid, _context: Context) -> None:
        """Do nothing."""

    with pytest.raises(ValueError, match="already"):
        app.main()(main)


def test_the_lifespan_runs_around_main_even_if_it_fails() -> None:
    app = ServerApp()
    notes: list[str] = []

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        notes.append(f"enter {context.run_id}")
        yield
        notes.append("exit")

    @app.main()
    def main(_grid: Grid, _context: Context) -> None:
        notes.append("main")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        app(grid(), context())
    assert notes == ["enter 1", "main", "exit"]
    with pytest.raises(ValueError, match="already"):
        app.lifespan()(lifespan)
