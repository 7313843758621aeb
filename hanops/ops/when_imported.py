"""What is to be done when a module of torch is imported: hanops does not import those that are slow to import."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from threading import local
from types import ModuleType
from typing import Any


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds a module as the others do, and acts when it has run. A search alone may come before the import."""

    def __init__(self, name: str, act: Callable[[Any], None]) -> None:
        self.name, self.act = name, act
        self.asking = local()  # the others, in this thread

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or hasattr(self.asking, "now"):
            return None
        self.asking.now = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            del self.asking.now
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:  # the first time
                sys.meta_path.remove(self)
                self.act(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def when_imported(name: str, act: Callable[[Any], None]) -> None:
    """Calls act with a module, at once or when it is imported."""
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _WhenImported(name, act))
