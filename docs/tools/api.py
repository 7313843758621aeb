"""Writes docs/api: every public name, the first sentence of its docstring, and where the site puts the rest of it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import hanops
from docs.tools.excerpts import escaped

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "api"
NOTE = "Arguments, shapes and errors stand in the docstrings. The site, which `make docs` builds, shows them here."

# Pages: title, what it holds, and the public names.
PAGES = {
    "layers": ("Layers", "Han layers as modules and as functions.", ["HanStack", "HanLayer", "han_stack", "han_layer"]),
    "chain": (
        "Chains of reflections",
        "Stacks without an absolute value: orthogonal matrices, and the inverse of every stack.",
        ["han_stack_inverse", "orthogonal", "Householder"],
    ),
    "conversion": (
        "Conversion and training",
        "Han layers in an existing model, and what its optimizer should know.",
        ["convert", "conversion.Conversion", "conversion.Row", "param_groups_weight_decay"],
    ),
    "models": ("Models", "The networks of the papers: `hanops.models`.", ["models"]),
    "metrics": (
        "Metrics",
        "What the papers measure, and hooks that count operations: `hanops.metrics`.",
        ["metrics"],
    ),
    "distributed": ("Devices", "Features shared out over devices: `hanops.distributed`.", ["distributed"]),
    "peft": (
        "Adapters",
        "Adapters of other packages that are chains of reflections: `hanops.peft`.",
        ["peft"],
    ),
    "backends": (
        "Backends",
        "Which implementation runs a call, and graphs that need none of them.",
        ["use_backend", "explain", "Explanation", "decompositions", "onnx_translations"],
    ),
}


def public(module: ModuleType) -> list[str]:
    """Returns the names that a module is there for."""
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__)
    return list(getattr(module, "__all__", None) or [name for name in own if not name.startswith("_")])


def names(page: str) -> dict[str, Any]:
    """Returns the objects of a page by the path under which a user finds them."""
    found: dict[str, Any] = {}
    for name in PAGES[page][2]:
        value: Any = hanops
        for part in name.split("."):
            value = getattr(value, part) if hasattr(value, part) else importlib.import_module(f"hanops.{name}")
        if isinstance(value, ModuleType):
            found |= {f"hanops.{name}.{inner}": getattr(value, inner) for inner in public(value)}
        else:
            found[f"hanops.{name}"] = value
    return found


def sentence(value: object) -> str:
    """Returns the first line of a docstring."""
    return inspect.cleandoc(value.__doc__ or "").splitlines()[0]


def source(value: Any) -> str:
    """Returns the path of the file that defines an object."""
    file = inspect.getsourcefile(inspect.unwrap(value))
    assert file is not None
    return Path(file).resolve().relative_to(REPOSITORY).as_posix()


def pages() -> dict[Path, str]:
    """Returns the pages of the reference."""
    written: dict[Path, str] = {}
    index = ["# All names", "", "Every public name of hanops.", ""]
    for page, (title, about, _) in PAGES.items():
        lines = [f"# {title}", "", about, "", NOTE]
        index += [f"## {title}", "", "| name | what it is, or does |", "|---|---|"]
        for path, value in names(page).items():
            name = path.rpartition(".")[2]
            index.append(f"| [`{path}`]({page}.md#{name.lower()}) | {escaped(sentence(value))} |")
            link = f"[{source(value)}](../../{source(value)})"
            lines += [
                "",
                f"## {name}",
                "",
                escaped(sentence(value)),
                "",
                f"Source: {link}",
                "",
                f"<!-- api: {path} -->",
            ]
        index.append("")
        written[FOLDER / f"{page}.md"] = "\n".join(lines) + "\n"
    return {FOLDER / "index.md": "\n".join(index), **written}
