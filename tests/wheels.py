"""Tiny packages for tests: as wheels that pip finds without a network, or as if they were installed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def _files(name: str, version: str, requires: Sequence[str], extras: Sequence[str], code: str) -> dict[str, str]:
    info = f"{name}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {text}" for text in requires] + [f"Provides-Extra: {extra}" for extra in extras]
    return {
        f"{name}/__init__.py": f"version = {version!r}\n{code}",
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: flq\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }


def wheel(
    folder: Path, name: str, version: str = "1.0", *, requires: Sequence[str] = (), extras: Sequence[str] = ()
) -> Path:
    """Make a wheel in `folder`; its package has a `version`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in _files(name, version, requires, extras, "").items():
            archive.writestr(file, text)
    return path


def installed(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    extras: Sequence[str] = (),
    code: str = "",
) -> Path:
    """Put a package into `folder` as pip would: on `sys.path` it counts as installed. Returns `folder`."""
    for file, text in _files(name, version, requires, extras, code).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def pip_settings(wheels: Path) -> Mapping[str, str]:
    """The environment in which pip knows the wheels in a folder, and nothing else."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}
