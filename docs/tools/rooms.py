"""Draws the map of the code, docs/figures/rooms.svg: rooms, and arrows as their imports and includes say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from docs.tools import svg

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "docs" / "figures" / "rooms.svg"

# Where a room stands from left to right, and what it holds. Its height follows from the arrows.
ROOMS = {
    "tests": (0, "of all that is below"),
    "benchmarks": (1, "times, plots, reports"),
    "examples": (3, "the papers' experiments"),
    "__main__": (2, "python -m hanops"),
    "profiling": (2, "timing, ceilings, registers"),
    "hanops": (-1, "import hanops: what a user sees"),
    "conversion": (1, "Linear to Han layers"),
    "metrics": (0, "what the papers measure"),
    "optim": (2, "parameter groups"),
    "distributed": (3, "features over devices"),
    "peft": (4, "HRA adapters as chains"),
    "models": (0, "the papers' networks"),
    "selection": (1, "names and patterns"),
    "modules": (2, "HanStack, HanLayer"),
    "chain": (1, "inverses, orthogonal matrices"),
    "functional": (2, "han_stack, han_layer"),
    "ops": (2, "what torch is told"),
    "backends": (2, "what runs and why; Triton"),
    "definition": (3, "the truth, checks, signs"),
    "csrc": (1, "the ops in C++, bindings"),
    "csrc/*.h": (1, "checks, choice of backend"),
    "csrc/cpu": (0, "CPU kernels"),
    "csrc/cuda": (1, "CUDA kernels"),
}
WIDTH, HEIGHT, LEFT, TOP, BOX, COLUMNS = 206, 70, 16, 16, (184, 40), 5
TONES = {"tests": svg.GREY, "benchmarks": svg.GREY, "examples": svg.GREY, "hanops": svg.BLUE}


def imports(source: str) -> Iterator[str]:
    """Yields the names that a module's statements and calls import, wherever they stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(part.value) for part in node.args if isinstance(part, ast.Constant))


def room_of_name(name: str) -> str | None:
    """Returns the room that an imported name is in."""
    parts = name.split(".")
    if parts[0] != "hanops":
        return parts[0] if parts[0] in ("benchmarks", "examples") else None
    if len(parts) == 1:
        return "hanops"
    if parts[1] == "_C":
        return "csrc"
    inner = REPOSITORY / "hanops" / parts[1]
    there = inner.is_dir() or inner.with_suffix(".py").exists()
    return parts[1] if there else "hanops"


def room_of_file(file: Path) -> str:
    """Returns the room that a file is in."""
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    if parts[0] == "csrc":
        return "/".join(parts[:2]) if len(parts) > 2 else "csrc/*.h" if file.suffix == ".h" else "csrc"
    if parts[0] != "hanops":
        return parts[0]
    return "hanops" if parts[1] == "__init__" else parts[1]


def arrows() -> dict[str, set[str]]:
    """Returns the rooms that each room uses. A name with an underscore is private, and no room."""
    found: dict[str, set[str]] = {}
    for top in ("hanops", "benchmarks", "examples"):
        for file in sorted((REPOSITORY / top).rglob("*.py")):
            used = found.setdefault(room_of_file(file), set())
            used |= {room for name in imports(file.read_text()) if (room := room_of_name(name))}
    for file in sorted((REPOSITORY / "csrc").rglob("*")):
        if file.suffix in (".h", ".cpp", ".cu", ".cuh"):
            used = found.setdefault(room_of_file(file), set())
            for name in re.findall(r'^\s*#\s*include\s*"(.*)"', file.read_text(), flags=re.MULTILINE):
                places = [folder / name for folder in (file.parent, REPOSITORY / "csrc") if (folder / name).exists()]
                used |= {room_of_file(place.resolve()) for place in places[:1]}
    private = {room for room in found if room.startswith("_") and room != "__main__"}
    return {room: used - private - {room} for room, used in found.items() if room not in private}


def below(uses: dict[str, set[str]], room: str) -> set[str]:
    """Returns all rooms that a room reaches."""
    reached: set[str] = set()
    waiting = list(uses.get(room, ()))
    while waiting:
        if (next_room := waiting.pop()) not in reached:
            reached.add(next_room)
            waiting += uses.get(next_room, ())
    return reached


def reduced(uses: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns the arrows that do not follow from others."""
    return {
        room: {other for other in used if not any(other in below(uses, between) for between in used - {other})}
        for room, used in uses.items()
    }


def ranks(uses: dict[str, set[str]]) -> dict[str, int]:
    """Returns how deep each room lies: below all that use it."""
    users = {room: {other for other, used in uses.items() if room in used} for room in ROOMS}
    found: dict[str, int] = {}
    for room in TopologicalSorter(users).static_order():
        found[room] = max((found[user] + 1 for user in users[room]), default=0)
    return found


def box(room: str, rank: int) -> tuple[float, float, float]:
    """Returns the left edge, the top and the width of a room."""
    column = ROOMS[room][0]
    if column < 0:
        return LEFT, TOP + rank * HEIGHT, (COLUMNS - 1) * WIDTH + BOX[0]
    return LEFT + column * WIDTH, TOP + rank * HEIGHT, BOX[0]


def figure() -> str:
    """Returns the map as SVG."""
    uses = arrows()
    if unknown := (set(uses) | set().union(*uses.values())) - set(ROOMS):
        raise SystemExit(f"docs/tools/rooms.py: ROOMS must have {', '.join(sorted(unknown))}")
    drawn, depth = reduced(uses), ranks(uses)
    places = {room: box(room, depth[room]) for room in ROOMS if room in uses or room == "tests"}
    if len(set(places.values())) < len(places):
        raise SystemExit("docs/tools/rooms.py: two rooms stand in one place")
    lowest = max(depth[room] for room in places)
    title = "Rooms of the code; an arrow points to what a room uses"
    drawing = svg.Drawing(title, 2 * LEFT + (COLUMNS - 1) * WIDTH + BOX[0], 2 * TOP + lowest * HEIGHT + BOX[1])
    for room, (x, y, width) in places.items():
        for other in sorted(drawn.get(room, ())):
            below_x, below_y, below_width = places[other]
            center, below_center = x + width / 2, below_x + below_width / 2
            start = below_center if width > BOX[0] else center  # of a bar, above what it points to
            end = center if below_width > BOX[0] else below_center
            drawing.arrow(start, y + BOX[1], end, below_y - 1)
    for room, (x, y, width) in places.items():
        fill = svg.ORANGE if room.startswith("csrc") else TONES.get(room, svg.GREEN)
        drawing.box(x, y, width, BOX[1], fill, dash=room == "tests")
        drawing.text(x + width / 2, y + 17, room, 13, bold=True)
        drawing.text(x + width / 2, y + 32, ROOMS[room][1], 11, svg.SOFT)
    return str(drawing)
