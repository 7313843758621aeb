"""Parts of a model that a caller chooses: by name, by pattern or by a predicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

Part = TypeVar("Part")


def choose(
    argument: str, given: str | Collection[str] | Callable[[str, Any], bool], parts: Mapping[str, Part]
) -> set[str]:
    """Returns the names of the chosen parts.

    Args:
        argument: what messages call it, "function: argument".
        given: a predicate of name and part, or names and patterns of `fnmatch`, whose `*` also stands for dots.
        parts: all there are, by name.

    Raises:
        TypeError: where `given` is none of these.
        ValueError: for a name or a pattern that no part has, or where nothing is chosen.
    """
    if callable(given):
        chosen = {name for name, part in parts.items() if given(name, part)}
    else:
        patterns = [given] if isinstance(given, str) else given
        if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(f"{argument} must be a predicate, names or patterns, got {given!r}")
        chosen = set()
        for pattern in patterns:
            matches = {name for name in parts if fnmatchcase(name, pattern)}
            if not matches:
                raise ValueError(f"{argument} has {pattern!r}, which is none of {kinds(parts)}")
            chosen |= matches
    if not chosen:
        raise ValueError(f"{argument} must choose something, got none of {kinds(parts)}")
    return chosen


def pattern(name: str) -> str:
    """Returns the pattern of the names that differ from this one in numbers only: "blocks.*.fc1" of "blocks.3.fc1"."""
    parts = name.split(".")
    return ".".join("*" if part.isdigit() and len(parts) > 1 else part for part in parts)


def kinds(names: Iterable[str], limit: int = 8) -> str:
    """Lists names for a message: all of them up to `limit`, else their patterns with the number of each."""
    names = list(names)
    if len(names) <= limit:
        return ", ".join(names)
    counts = Counter(map(pattern, names))
    shown = [name if count == 1 else f"{name} ({count})" for name, count in counts.most_common(limit)]
    rest = len(names) - sum(count for _, count in counts.most_common(limit))
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
