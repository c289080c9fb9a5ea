"""Patterns like those of a .gitignore: `*.csv`, `data/**/*.npz`, `/build/`, `!keep.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]
    negated: bool
    folders_only: bool


@dataclass(frozen=True, slots=True)
class Patterns:
    """A list of patterns of which the last one that matches decides."""

    _patterns: tuple[_Pattern, ...]

    def match(self, path: str, *, folder: bool) -> bool:
        """Whether the relative POSIX `path`, looked at by itself, is among what the patterns mean."""
        matched = False
        for pattern in self._patterns:
            if matched is pattern.negated and (folder or not pattern.folders_only) and pattern.regex.fullmatch(path):
                matched = not pattern.negated
        return matched

    def match_below(self, path: str) -> bool:
        """Whether the file `path`, or a folder that it lies in, is among what the patterns mean."""
        parts = path.split("/")
        folders = ("/".join(parts[:end]) for end in range(1, len(parts)))
        return any(self.match(folder, folder=True) for folder in folders) or self.match(path, folder=False)


def compile_patterns(lines: Iterable[str]) -> Patterns:
    """Read patterns, one a line; empty lines and comments count for nothing."""
    stripped = (line.strip() for line in lines)
    return Patterns(tuple(_compile(line) for line in stripped if line and not line.startswith("#")))


def _compile(line: str) -> _Pattern:
    negated = line.startswith("!")
    line = line.removeprefix("!")
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    anchored = "/" in line
    regex = "".join(_translate(line.removeprefix("/").split("/")))
    return _Pattern(re.compile(regex if anchored else f"(?:.*/)?{regex}"), negated, folders_only)


def _translate(parts: Sequence[str]) -> Iterable[str]:
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if part == "**":
            yield ".*" if last else "(?:.*/)?"
        else:
            yield _translate_part(part) + ("" if last else "/")


def _translate_part(part: str) -> str:
    """One path segment: `*` and `?` never match a slash."""
    translated = ""
    position = 0
    while position < len(part):
        character = part[position]
        closing = part.find("]", position + 2) if character == "[" else -1
        if closing > 0:
            translated += _character_class(part[position + 1 : closing])
            position = closing
        else:
            translated += {"*": "[^/]*", "?": "[^/]"}.get(character, re.escape(character))
        position += 1
    return translated


def _character_class(inside: str) -> str:
    negated = inside.startswith(("!", "^"))
    members = inside[negated:].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^").replace("&&", r"\&&")
    return f"(?!/)[{'^' if negated else ''}{members}]"
