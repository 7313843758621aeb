"""Triton's interpreter with its language patched once in a process: for every launch takes half of the time."""

from __future__ import annotations

from functools import cache
from typing import Any


class Lasting:
    """Stands for what the interpreter would take back after a launch."""

    def restore(self) -> None:
        """Leaves it: nothing in a process of tests compiles Triton's language."""


@cache
def patch_once() -> None:
    """Has the interpreter patch the modules that a kernel's module sees at its first launch alone."""
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang, set[str]()

    def once(function: Any) -> Lasting:
        if function.__module__ not in patched:
            patch(function)
            patched.add(function.__module__)
        return Lasting()

    interpreter._patch_lang = once
