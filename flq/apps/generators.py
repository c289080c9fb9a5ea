"""The generators of random numbers that apps use without making one: those of `random`, numpy and torch.

They are seeded, never by the time: a ServerApp's with the seed of its run, a ClientApp's anew for each task. A commit
keeps their states, so that an attempt that goes on behind it draws what the one before would have drawn. Generators
that an app makes itself (`numpy.random.default_rng(seed)`, `random.Random(seed)`) are its own to seed, and to keep.
"""

from __future__ import annotations

import hashlib
import random
import struct
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

_PYTHON = struct.Struct("<625I?d")
_NUMPY = struct.Struct("<624IIId")
_NUMPY_SEEDS = 2**32
_PYTHON_VERSION = 3
_NUMPY_KIND = "MT19937"


def seed_run(seed: int) -> None:
    """Seed the generators with the seed of a run, as a script does with `random.seed(seed)`."""
    random.seed(seed)
    np.random.seed(seed % _NUMPY_SEEDS)  # noqa: NPY002 - the generator that apps use is the global one
    torch = _torch()
    if torch is not None:
        torch.manual_seed(seed)


def seed_task(*parts: object) -> None:
    """Seed the generators from `parts`: the same from the same, others from others."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, dtype="<u4"))  # noqa: NPY002 - the generator that apps use is the global one
    torch = _torch()
    if torch is not None:
        torch.manual_seed(int.from_bytes(digest[:8], "little"))


def save() -> dict[str, bytes]:
    """The states of the generators by the name of their module; torch's if the app has imported it."""
    states = {"random": _python_state()}
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    if numpy_state["bit_generator"] == _NUMPY_KIND:  # not one that the app has put in its place
        key = numpy_state["state"]
        states["numpy"] = _NUMPY.pack(*key["key"], key["pos"], numpy_state["has_gauss"], numpy_state["gauss"])
    torch = _torch()
    if torch is not None:
        states["torch"] = torch.get_rng_state().numpy().tobytes()
    return states


def restore(states: Mapping[str, bytes]) -> None:
    """Give the generators the states that `save` returned; those that it did not know stay as they are."""
    if "random" in states:
        *words, has_gauss, gauss = _PYTHON.unpack(states["random"])
        random.setstate((_PYTHON_VERSION, tuple(words), gauss if has_gauss else None))
    if "numpy" in states:
        *key, position, has_gauss, gauss = _NUMPY.unpack(states["numpy"])
        np.random.set_state(  # noqa: NPY002
            (_NUMPY_KIND, np.array(key, np.uint32), position, has_gauss, gauss)
        )
    torch = _torch()
    if torch is not None and "torch" in states:
        torch.set_rng_state(torch.frombuffer(bytearray(states["torch"]), dtype=torch.uint8))


def _python_state() -> bytes:
    _, words, gauss = random.getstate()
    return _PYTHON.pack(*words, gauss is not None, 0.0 if gauss is None else gauss)


def _torch() -> Any:
    """Torch if the app has imported it: it is large, and we need it for nothing else."""
    return sys.modules.get("torch")
