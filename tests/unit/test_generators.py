# ruff: noqa: NPY002, S311 - it is about the generators that these rules advise against

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from flq.apps import generators


@pytest.fixture(autouse=True)
def _generators_stay() -> Iterator[None]:
    before = generators.save()
    yield
    generators.restore(before)


def draws() -> list[float]:
    """Numbers of both modules, with those that a generator makes in pairs and keeps one of."""
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.normal())]


def test_a_run_is_seeded_as_a_script_is() -> None:
    generators.seed_run(2**40 + 5)
    drawn = draws()
    random.seed(2**40 + 5)
    np.random.seed(5)
    assert draws() == drawn


def test_tasks_are_seeded_by_what_they_are() -> None:
    drawn = []
    for parts in ((1, "a"), (1, "a"), (1, "b"), (2, "a")):
        generators.seed_task(*parts)
        drawn.append(tuple(draws()))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("times", [0, 1, 2, 400])
def test_a_kept_state_draws_the_same(times: int) -> None:
    generators.seed_run(1)
    for _ in range(times):
        draws()
    kept = generators.save()
    expected = [draws() for _ in range(3)]
    generators.seed_run(2)
    generators.restore(kept)
    assert [draws() for _ in range(3)] == expected
    assert all(isinstance(state, bytes) for state in kept.values())


def test_a_generator_that_the_app_has_put_in_is_its_own() -> None:
    module: Any = np.random
    before = module.get_bit_generator()
    module.set_bit_generator(np.random.PCG64(1))
    try:
        assert "numpy" not in generators.save()
    finally:
        module.set_bit_generator(before)


def test_torch_is_seeded_and_kept_if_the_app_has_imported_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        uint8 = np.uint8
        seeds: ClassVar[list[int]] = []
        state = np.arange(5, dtype=np.uint8)

        def manual_seed(self, seed: int) -> None:
            self.seeds.append(seed)

        def get_rng_state(self) -> Any:
            state = self.state

            class Tensor:
                def numpy(self) -> Any:
                    return state

            return Tensor()

        def frombuffer(self, data: bytearray, dtype: Any) -> Any:
            return np.frombuffer(data, dtype)

        def set_rng_state(self, state: Any) -> None:
            self.state = state

    torch = Torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    generators.seed_run(9)
    kept = generators.save()
    torch.state = np.zeros(5, np.uint8)
    generators.restore(kept)
    assert torch.seeds == [9]
    assert torch.state.tolist() == [0, 1, 2, 3, 4]
