"""`--run-config` and `--node-config`: overrides as they are typed on a command line.

    num-rounds=5 optimizer.lr=0.01 name="a b" path=/data/x

Values are TOML; what is no TOML is text. A value takes the type of the default that it overrides.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flq.errors import RunConfigError
from flq.wire.runs import ConfigValue

_PAIR = re.compile(
    r"""\s*
    (?P<key> [A-Za-z0-9_.-]+ | "[^"]*" )
    =
    (?P<value> "(?:[^"\\]|\\.)*" | '[^']*' | [^\s"']\S* | )
    (?=\s|$)""",
    re.VERBOSE,
)
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


class _Given(NamedTuple):
    """A value, and how it was written if it was written bare."""

    value: ConfigValue
    bare: str | None = None


def override_config(defaults: Mapping[str, ConfigValue], overrides: Sequence[str]) -> dict[str, ConfigValue]:
    """`defaults` with the overrides, later ones winning.

    An override holds one or many `key=value`, or is the path of a `.toml` file. Raises `RunConfigError` for a key that
    has no default, naming the nearest one that has, and for a value of another type. An int may stand for a float.
    """
    config = dict(defaults)
    for override in overrides:
        for key, given in _given(override):
            if key not in defaults:
                raise _unknown(key, defaults)
            config[key] = _typed(key, given, defaults[key])
    return config


def parse_key_values(text: str) -> dict[str, ConfigValue]:
    """The pairs in `k=v k2="a b"`. Raises `RunConfigError`."""
    return {key: given.value for key, given in _pairs(text)}


def load_run_config_file(path: Path) -> dict[str, ConfigValue]:
    """The values of a TOML file with flat, dotted keys. Raises `RunConfigError`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise RunConfigError(f"{path} cannot be read: {why}", hint="it is a TOML file with key = value") from exc
    config: dict[str, ConfigValue] = {}
    for key, value in flatten(document):
        config[key] = _checked(key, value, where=f"{path}: ")
    return config


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a table and of those in it, with dotted keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_config_value(value: object) -> bool:
    """Whether `value` may stand in a configuration."""
    return isinstance(value, bool | int | float | str)


def _given(override: str) -> Iterator[tuple[str, _Given]]:
    if override.endswith(".toml") and "=" not in override:
        for key, value in load_run_config_file(Path(override)).items():
            yield key, _Given(value)
    else:
        yield from _pairs(override)


def _pairs(text: str) -> Iterator[tuple[str, _Given]]:
    position = 0
    while text[position:].strip():
        found = _PAIR.match(text, position)
        if found is None:
            raise RunConfigError(
                f"{text[position:].strip()!r} is no key=value",
                hint="""write pairs like: num-rounds=5 lr=0.1 name="a b" """.rstrip(),
            )
        position = found.end()
        key = found["key"].strip('"')
        yield key, _parsed(key, found["value"])


def _parsed(key: str, text: str) -> _Given:
    """A value as TOML, or as text if it is none."""
    quoted = text.startswith(("'", '"'))
    if "#" in text and not quoted:
        return _Given(text, bare=text)  # to TOML it would begin a comment
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as exc:
        if quoted:
            raise RunConfigError(f"the value of {key} is no text: {text} ({exc})") from exc
        return _Given(text, bare=text)
    if not quoted and not isinstance(value, bool | int | float | list | dict):
        return _Given(text, bare=text)  # a date or a time: configurations know none
    return _Given(_checked(key, value), bare=None if quoted else text)


def _checked(key: str, value: Any, where: str = "") -> ConfigValue:
    if not is_config_value(value):
        raise RunConfigError(f"{where}{key} is {value!r}; it must be a bool, a number or text")
    if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        raise RunConfigError(f"{where}{key} is {value}, which does not fit 64 bits")
    checked: ConfigValue = value
    return checked


def _typed(key: str, given: _Given, default: ConfigValue) -> ConfigValue:
    value = given.value
    if type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, str) and given.bare is not None:
        return given.bare
    raise RunConfigError(
        f"{key} is {_spelled(value)}; it must be {_KINDS[type(default)]}",
        hint=f"the default is {key}={_spelled(default)}",
    )


def _spelled(value: ConfigValue) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


_KINDS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def _unknown(key: str, defaults: Mapping[str, ConfigValue]) -> RunConfigError:
    near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.0)
    if not near:
        return RunConfigError(f"there is no {key!r} to set: the project has no [tool.flq.app.config]")
    return RunConfigError(
        f"there is no {key!r} in the project's configuration; the nearest is {near[0]!r}",
        hint=f"known keys: {', '.join(sorted(defaults))}",
    )
