"""GPUs: which of them the workers of a SuperNode may use.

A worker sees its share as CUDA_VISIBLE_DEVICES, set before its app is loaded. There are as many shares as slots; with
more slots than GPUs some shares are the same, with fewer a share is several GPUs. Workers that compute at the same
time have different shares, and a worker keeps its own for life: CUDA looks at the variable once.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence

from flq.errors import UsageError

VARIABLE = "CUDA_VISIBLE_DEVICES"
ALL = "all"
NONE = "none"

_DEVICE = re.compile(r"\d{1,4}|(GPU|MIG)-[A-Za-z0-9/-]{1,80}")
_SMI = ("nvidia-smi", "--query-gpu=index", "--format=csv,noheader")
_SMI_SECONDS = 60.0


def parse_gpus(text: str) -> tuple[str, ...]:
    """The devices that `0,1`, `GPU-8a56a4bc`, `all` or `none` name. Raises `UsageError`.

    All are those that this process may use: the ones that CUDA_VISIBLE_DEVICES names, else those that nvidia-smi lists.
    """
    return _all_devices() if text.strip() == ALL else _named_devices(text.strip())


def _named_devices(text: str) -> tuple[str, ...]:
    if text in {"", NONE}:
        return ()
    devices = tuple(part.strip() for part in text.split(","))
    strange = next((device for device in devices if not _DEVICE.fullmatch(device)), None)
    if strange is not None:
        raise UsageError(f"{strange!r} is no GPU", hint="numbers or UUIDs as in CUDA_VISIBLE_DEVICES, all, or none")
    if len(set(devices)) < len(devices):
        raise UsageError(f"a GPU is named twice in {text!r}")
    return devices


def shares(devices: Sequence[str] | None, slots: int) -> list[str | None]:
    """What each slot's worker is to see: None leaves the variable as it is, an empty text hides all GPUs.

    Neighbours go together, as their links are the fastest.
    """
    if devices is None:
        return [None] * slots
    count = len(devices)
    if count <= slots:
        return [devices[slot % count] if count else "" for slot in range(slots)]
    return [",".join(devices[slot * count // slots : (slot + 1) * count // slots]) for slot in range(slots)]


class Shares:
    """Hands shares out so that those in use differ for as long as there are different ones."""

    def __init__(self, devices: Sequence[str] | None, slots: int) -> None:
        self._room = Counter(shares(devices, slots))

    def has_room(self, share: str | None, in_use: Iterable[str | None]) -> bool:
        """Whether one more worker with this share may compute, beside those whose shares are `in_use`."""
        return self._room[share] > sum(1 for other in in_use if other == share)

    def choose(self, in_use: Iterable[str | None], held: Iterable[str | None]) -> str | None:
        """The share for one more worker, which is to compute: there must be a free slot.

        It is one that the fewest workers use, and of these one that the fewest workers hold, busy or idle.
        """
        used, kept = Counter(in_use), Counter(held)
        free = [share for share, room in self._room.items() if room > used[share]]
        return min(free, key=lambda share: (used[share], kept[share]))


def _all_devices() -> tuple[str, ...]:
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _named_devices(given.strip())
    try:
        listed = subprocess.run(_SMI, capture_output=True, text=True, check=True, timeout=_SMI_SECONDS).stdout.split()
    except (OSError, subprocess.SubprocessError) as exc:
        raise UsageError(
            f"the GPUs of this machine cannot be listed: {exc}", hint="name them, for example: --gpus 0,1"
        ) from exc
    if not listed:
        raise UsageError("nvidia-smi lists no GPU", hint="--gpus none hides them all")
    return _named_devices(",".join(listed))
