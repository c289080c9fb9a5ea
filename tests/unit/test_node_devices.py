"""Which GPUs, and how they are shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from flq.errors import UsageError
from flq.node.devices import Shares, parse_gpus, shares


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("0,1", ("0", "1")),
        (" 2 , 0 ", ("2", "0")),
        ("GPU-8a56a4bc-1,MIG-GPU-8a56/1/0", ("GPU-8a56a4bc-1", "MIG-GPU-8a56/1/0")),
        ("none", ()),
        ("", ()),
    ],
)
def test_devices_are_named(text: str, devices: tuple[str, ...]):
    assert parse_gpus(text) == devices


@pytest.mark.parametrize("text", ["0,,1", "0;1", "cuda:0", "-1", "0,0", "all,0"])
def test_what_names_no_device_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_gpus(text)


def nvidia_smi(folder: Path, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_all_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UsageError, match="cannot be listed"):
        parse_gpus("all")
    nvidia_smi(tmp_path, "echo 0; echo 1; echo 2")
    assert parse_gpus("all") == ("0", "1", "2")
    nvidia_smi(tmp_path, "exit 0")
    with pytest.raises(UsageError, match="lists no GPU"):
        parse_gpus("all")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert parse_gpus("all") == ("3", "5")


@pytest.mark.parametrize(
    ("devices", "slots", "expected"),
    [
        (None, 2, [None, None]),
        ((), 2, ["", ""]),
        (("0", "1"), 2, ["0", "1"]),
        (("0", "1"), 5, ["0", "1", "0", "1", "0"]),
        (("0", "1", "2", "3"), 2, ["0,1", "2,3"]),
        (("0", "1", "2"), 2, ["0", "1,2"]),
        (("7", "8", "9"), 1, ["7,8,9"]),
    ],
)
def test_slots_share_devices_evenly(devices: tuple[str, ...] | None, slots: int, expected: list[str | None]):
    assert shares(devices, slots) == expected


def test_a_share_has_as_much_room_as_slots_have_it():
    found = Shares(("0", "1"), 3)
    assert found.has_room("0", ["0", "1"])
    assert not found.has_room("0", ["0", "0"])
    assert not found.has_room("1", ["1"])


def test_the_share_that_is_used_and_held_least_is_chosen():
    found = Shares(("0", "1"), 4)
    assert found.choose([], []) == "0"
    assert found.choose([], ["0"]) == "1"
    assert found.choose(["0"], ["0"]) == "1"
    assert found.choose(["0"], ["0", "1", "1"]) == "1"
    assert found.choose(["0", "1", "1"], []) == "0"
    assert Shares(None, 2).choose([None], [None]) is None
