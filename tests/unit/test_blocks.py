from __future__ import annotations

import threading

import numpy as np
import pytest

from flq.apps.blocks import BLOCK, PART, Workers, room


class TestWorkers:
    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_results_come_in_the_order_of_the_items(self, threads: int) -> None:
        workers = Workers(threads)
        assert workers.each(range(50), lambda number: number * number) == [number * number for number in range(50)]
        assert workers.each_part(2 * PART + 1, lambda part: (part.start, part.stop)) == [
            (0, PART),
            (PART, 2 * PART),
            (2 * PART, 2 * PART + 1),
        ]
        assert workers.each([], str) == []
        workers.close()
        assert workers.each([1, 2], str) == ["1", "2"]
        workers.close()

    def test_all_threads_work_at_the_same_time_each_with_its_own_scratch(self) -> None:
        workers = Workers(3)
        together = threading.Barrier(3)

        def work(_item: int) -> tuple[int, int]:
            scratch = workers.scratch(np.dtype(np.float32))
            assert (scratch.size, scratch.dtype.name) == (BLOCK, "float32")
            together.wait(60)
            return threading.get_ident(), id(scratch)

        found = workers.each(range(9), work)
        workers.close()
        assert len(set(found)) == len({thread for thread, _ in found}) == len({scratch for _, scratch in found}) == 3

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_error_ends_the_work_and_is_raised(self, threads: int) -> None:
        workers = Workers(threads)
        begun: list[int] = []

        def work(item: int) -> None:
            begun.append(item)
            raise ValueError(item)

        with pytest.raises(ValueError, match=r"0|1"):
            workers.each(range(100), work)
        assert len(begun) <= threads
        workers.close()


class TestRoom:
    @pytest.mark.parametrize("size", [0, 5, (1 << 20) - 1, 1 << 20, 3_000_001])
    @pytest.mark.parametrize("dtype", [np.float32, np.complex128])
    def test_is_a_writable_array_of_its_own(self, size: int, dtype: type) -> None:
        found, other = room(size, np.dtype(dtype)), room(size, np.dtype(dtype))
        found[:] = 1
        other[:] = 2
        assert (found.size, found.dtype.name, found.flags.c_contiguous) == (size, np.dtype(dtype).name, True)
        assert (found == 1).all()

    def test_a_large_one_begins_with_a_huge_page(self) -> None:
        assert all(room(1 << 20, np.dtype(np.float32)).ctypes.data % (2 << 20) == 0 for _ in range(3))
