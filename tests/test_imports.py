"""Which room of hanops may import which other: the arrows run one way, from what users call to the definition."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hanops

PACKAGE = Path(hanops.__file__).parent
ROOT = Path(__file__).parent.parent
ARROWS = {
    "definition": "",
    "backends": "definition _torch _C",
    "ops": "backends definition _torch",
    "functional": "ops _torch",
    "chain": "functional ops backends definition",
    "modules": "functional chain definition",
    "models": "modules definition",
    "conversion": "modules models selection definition _torch",
    "optim": "modules selection",
    "metrics": "modules models definition",
    "distributed": "modules ops backends definition _torch",
    "peft": "functional",
    "hanops": "backends ops functional chain modules models conversion optim metrics distributed peft",  # itself
    "profiling": "hanops backends definition",
    "__main__": "hanops backends profiling",
}


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in PACKAGE.rglob("*.py")}


def room_of(module: str) -> str:
    """Returns the folder or the file in hanops/ that a module is in, 'hanops' for the package itself."""
    return module.split(".")[1] if "." in module else "hanops"


def imported(node: ast.AST) -> Iterator[str]:
    """Yields the modules that a statement or a call imports, wherever it stands."""
    if isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield from (f"{base}.{name.name}" for name in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def wrong_arrows(module: str, source: str) -> list[str]:
    """Returns the arrows of a module's imports, those inside functions too, that ARROWS does not have."""
    own = room_of(module)
    wrong = []
    for name in (name for node in ast.walk(ast.parse(source)) for name in imported(node)):
        if name.startswith("."):
            wrong.append(f"{module}: {name} is relative")
        elif name.split(".")[0] == "hanops":
            known = next((n for n in (name, name.rpartition(".")[0]) if n in MODULES or n == "hanops._C"), "hanops")
            if (room := room_of(known)) not in (own, *ARROWS.get(own, "").split()):
                wrong.append(f"{module} -> {room}")
    return wrong


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_modules_beside_the_package_have_no_bare_name(folder):
    """`import table` finds nothing: a module is benchmarks.table, wherever a program or a test is started."""
    names = {file.stem for file in (ROOT / folder).glob("*.py")} - {"__init__"}
    for name in sorted(names):
        spec = getattr(sys.modules[name], "__spec__", None) if name in sys.modules else importlib.util.find_spec(name)
        file = spec.origin if spec else None
        assert file is None or ROOT / folder not in Path(file).parents, f"{name} is {file}"
    assert importlib.util.find_spec(f"{folder}.{min(names)}")


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_one_way(module):
    assert not wrong_arrows(module, MODULES[module].read_text())


def test_the_arrows_make_no_circle():
    rooms = {room: below.split() for room, below in ARROWS.items()}
    assert set(TopologicalSorter(rooms).static_order()) >= {room_of(module) for module in MODULES}


@pytest.mark.parametrize(
    "source",
    [
        "from hanops.modules import HanStack",
        "import hanops",
        "from hanops import han_stack",
        "from hanops import backends",
        "def f():\n    from hanops.ops.autograd import is_differentiated",
        "import importlib\nif True:\n    importlib.import_module('hanops.profiling.timing')",
        "from .backends import explain",
    ],
)
def test_a_wrong_arrow_is_found(source):
    assert wrong_arrows("hanops.definition.checks", source)
    assert not wrong_arrows("hanops.definition.checks", "import torch\nfrom hanops.definition.signs import pack")
