"""Parts of a model that a caller chooses: by name, by pattern or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
                raise ValueError(f"{argument} has {pattern!r}, which is none of {', '.join(parts)}")
            chosen |= matches
    if not chosen:
        raise ValueError(f"{argument} must choose something, got none of {', '.join(parts)}")
    return chosen
