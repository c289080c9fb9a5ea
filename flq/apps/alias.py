"""`import flwr` in the processes of an app: brings the names of flq, for apps that were written for Flower (flwr).

The names are the same objects as those of `flq.apps`, whatever module they are imported from, so `isinstance` holds
between them. A name or module that flq does not have is an ImportError that says so. A real flwr in the environment is
not touched: the finder stands before it in the processes of apps only.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import flq
from flq.apps.flower_names import ABSENT, FLOWER_VERSION, MODULES

ROOT = "flwr"


def install() -> None:
    """From now on `import flwr` brings the names of flq into this process."""
    if not is_installed():
        sys.meta_path.insert(0, _Finder())


def is_installed() -> bool:
    """Whether `import flwr` brings the names of flq into this process."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def covers(module_name: str) -> bool:
    """Whether the module is one of Flower's."""
    return module_name == ROOT or module_name.startswith(f"{ROOT}.")


class _Finder(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the interface of MetaPathFinder
        target: ModuleType | None = None,  # noqa: ARG002 - as above
    ) -> ModuleSpec | None:
        if not covers(fullname):
            return None
        if fullname not in MODULES:
            raise ModuleNotFoundError(
                f"flq {flq.__version__} has no module {fullname!r}: see docs/flower-apps.md for the names that it has",
                name=fullname,
            )
        is_package = any(name.startswith(f"{fullname}.") for name in MODULES)
        return ModuleSpec(fullname, _Loader(), origin=f"flq {flq.__version__}", is_package=is_package)


class _Loader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        names = MODULES[module.__name__]
        module.__doc__ = f"The names of {module.__name__}, from flq {flq.__version__}."
        module.__dict__["__version__"] = FLOWER_VERSION
        module.__dict__["__all__"] = sorted(names)
        module.__dict__["__getattr__"] = _Names(module, names)


class _Names:
    """Looks a name up when it is asked for, so that nothing is imported that an app does not use."""

    def __init__(self, module: ModuleType, names: Mapping[str, str]) -> None:
        self._module = module
        self._names = names

    def __call__(self, name: str) -> object:
        if name not in self._names:
            return self._missing(name)
        source, _, attribute = self._names[name].partition(":")
        found = importlib.import_module(source)
        value: object = getattr(found, attribute)
        setattr(self._module, name, value)
        return value

    def _missing(self, name: str) -> object:
        if f"{self._module.__name__}.{name}" in MODULES:
            return importlib.import_module(f"{self._module.__name__}.{name}")
        where = f"{self._module.__name__!r} of flq {flq.__version__}"
        if name.startswith("__"):  # Python itself asks for these
            raise AttributeError(f"the module {where} has no attribute {name!r}")
        why = ABSENT.get(self._module.__name__, {}).get(name, "see docs/flower-apps.md for the names that it has")
        raise ImportError(f"the module {where} has no name {name!r}: {why}", name=self._module.__name__)
