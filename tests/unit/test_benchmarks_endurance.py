"""The arithmetic of the benchmark `endurance`."""

from __future__ import annotations

import mmap
import os

import pytest

from benchmarks import endurance
from benchmarks.endurance import Memory, shown, tenth
from benchmarks.failure import BenchmarkError

MB = 1 << 20
SECOND, LAST = (10.0, 20.0), (90.0, 100.0)


def watched(**samples: list[tuple[float, int]]) -> Memory:
    memory = Memory([])
    for number, (name, values) in enumerate(samples.items()):
        memory.samples[number] = values
        memory.names[number] = name
    return memory


def test_growth_compares_the_medians_of_two_spans():
    memory = watched(app=[(5, 1 * MB), (12, 10 * MB), (13, 90 * MB), (14, 10 * MB), (92, 12 * MB), (95, 12 * MB)])
    assert memory.growth(SECOND, LAST) == {"app 0": (1.2, 12 * MB)}


def test_growth_by_less_than_the_noise_counts_as_none():
    memory = watched(small=[(12, MB), (95, MB + endurance.NOISE_BYTES)], less=[(12, 2 * MB), (95, MB)])
    assert {name: ratio for name, (ratio, _) in memory.growth(SECOND, LAST).items()} == {"small 0": 1.0, "less 1": 0.5}


def test_processes_that_came_later_or_went_do_not_count():
    memory = watched(new=[(95, MB)], gone=[(12, MB)], stayed=[(12, MB), (95, MB)])
    assert set(memory.growth(SECOND, LAST)) == {"stayed 2"}
    with pytest.raises(BenchmarkError, match="no process has lived"):
        watched(new=[(95, MB)]).growth(SECOND, LAST)


def test_tenths_of_the_rounds():
    starts = [float(second) for second in range(101)]
    assert (tenth(starts, 0), tenth(starts, 1), tenth(starts, 9)) == ((0.0, 10.0), (10.0, 20.0), (90.0, 100.0))


def test_the_private_memory_of_a_process_is_noted():
    before = endurance.private_bytes(os.getpid())
    held = mmap.mmap(-1, 8 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not what was freed before
    held.write(b"x" * (8 * MB))
    assert endurance.private_bytes(os.getpid()) - before > 4 * MB
    held.close()


def test_memory_that_others_may_map_is_not_private():
    before = endurance.private_bytes(os.getpid())
    held = mmap.mmap(-1, 8 * MB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1  # nobody else has touched it
    assert endurance.private_bytes(os.getpid()) - before < MB
    held.close()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/usr/bin/python3", "-P", "-m", "flq", "superlink"], "flq superlink"),
        (["/usr/bin/python3", "-P", "-m", "flq.node.worker", "5", "77"], "flq.node.worker"),
        (["postgres: checkpointer "], "postgres: checkpointer"),
        (["postgres: flq flq [local] idle"], "postgres: flq flq [local]"),
        (["/opt/bin/valkey-server unixsocket:/run/valkey.sock"], "valkey-server"),
        ([], "ended"),
    ],
)
def test_what_a_process_is(arguments: list[str], name: str):
    assert shown(arguments) == name
