"""The tables of a run, one for each group of cases: they end the run in the terminal, and the report shows them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .cases import COPY, DTYPES, GRAPH, OWN, Case
from .ratios import NOISY
from .table import Column, Noisy, Table, count, digits, filled, percent, seconds, size
from .words import GROUPS, WAYS, in_order, layered, way_shown

Benchmark = dict[str, Any]

LIMITS = ("copies of x", "share of copy", "share of issue")
SIZES = {"N": "rows", "d": "features", "L": "layers"}


def groups_in(benchmarks: Iterable[Benchmark]) -> list[str]:
    """Returns the groups of a run, in the order of the page."""
    there = dict.fromkeys(b["extra_info"]["group"] for b in benchmarks if b["extra_info"].get("kind") == "group")
    order = list(GROUPS)
    return sorted(there, key=lambda group: order.index(group) if group in order else len(order))


@dataclass(frozen=True)
class Line:
    """A case in a direction: what was measured of each rival, and of a copy of the case's input."""

    case: str
    way: str
    rivals: dict[str, Benchmark]
    copy: Benchmark | None

    @property
    def own(self) -> Benchmark:
        """HanStack's row."""
        return self.rivals[OWN]


def lines_of(benchmarks: Iterable[Benchmark], group: str, ways: Collection[str] = ()) -> list[Line]:
    """Returns a group's lines in which there is a HanStack, the directions in order; ways: only these, if any."""
    found: dict[tuple[str, str], dict[str, Benchmark]] = {}
    for b in benchmarks:
        info = b["extra_info"]
        if info.get("kind") == "group" and info["group"] == group:
            found.setdefault((info["case"], info["way"]), {})[info["rival"]] = b
    order = list(WAYS)
    lines = []
    for (case, way), rivals in found.items():
        in_graph = way.removeprefix(direction := way.removesuffix(GRAPH))
        if OWN in rivals and (not ways or way in ways):
            place = order.index(direction) if direction in order else len(order), in_graph
            lines.append((place, Line(case, way, rivals, found.get((case, f"forward{in_graph}"), {}).get(COPY))))
    return [line for _, line in sorted(lines, key=lambda item: item[0])]


# ---- cells


def spread(b: Benchmark) -> float:
    """Returns the middle half of a row's times over their median."""
    return b["stats"]["iqr"] / b["stats"]["median"] if b["stats"]["median"] else 0.0


def noise(b: Benchmark, base: Benchmark | None, name: str) -> float:
    """Returns the noise of a row's 'ratio' or 'copies' over it: half of its interval, or the rounds' middle half.

    base: the row that it is a ratio to. A file that does not have the rounds' middle half has that of both times.
    """
    info = b["extra_info"]
    half = info[f"{name}_noise"] / info[name]
    if f"{name}_iqr" in info:
        return max(half, info[f"{name}_iqr"] / info[name])
    return max(half, math.hypot(spread(b), spread(base) if base else 0.0))


def ratio(b: Benchmark, base: Benchmark | None, name: str = "ratio") -> str:
    """Returns a ratio, if there is one, with half of its 95 % interval; it is marked where its noise is over 20 %."""
    info = b["extra_info"]
    if name not in info:
        return ""
    places = digits(info[name])
    text = f"{info[name]:,.{places}f} ± {info[f'{name}_noise']:.{places}f}"
    return Noisy(text) if noise(b, base, name) > NOISY else text


def _limits(line: Line) -> dict[str, str]:
    """Returns how near a HanStack's row is to the limits of the machine, by LIMITS."""
    shares = (line.own["extra_info"].get(name) for name in ("share_of_copy", "share_of_instructions"))
    return dict(zip(LIMITS, (ratio(line.own, line.copy, "copies"), *map(percent, shares)), strict=True))


def case_of(info: dict[str, Any]) -> Case | None:
    """Returns the case of a row, None where its sizes alone do not name it: of groups, of images."""
    if info["dtype"] not in DTYPES:
        return None
    case = Case(info["rows"], info["features"], info["layers"], DTYPES[info["dtype"]])
    return case if str(case) == info["case"] else None


class Sizes:
    """What of N, d, L and the storage type is the same in all rows of a table, and columns of the rest."""

    def __init__(self, infos: Sequence[dict[str, Any]], always: bool = False) -> None:
        self.named = [] if all(map(case_of, infos)) else [Column("case", is_text=True)]
        self.varying = [
            symbol
            for symbol, name in SIZES.items()
            if not self.named and (always or len({info[name] for info in infos}) > 1)
        ]
        dtypes = list(dict.fromkeys(info["dtype"] for info in infos))
        self.dtypes = [Column("dtype", is_text=True)] if len(dtypes) > 1 else []
        first = infos[0]
        same = [s for s, name in SIZES.items() if s not in self.varying and len({info[name] for info in infos}) == 1]
        self.about = ", ".join(
            [*(f"{s} = {count(first[SIZES[s]])}" for s in same), *(dtypes if len(dtypes) == 1 else [])]
        )

    @property
    def columns(self) -> list[Column]:
        return [*self.named, *map(Column, self.varying), *self.dtypes]

    def cells(self, info: dict[str, Any]) -> list[str]:
        """Returns a row's cells of these columns."""
        sizes = [count(info[SIZES[symbol]]) for symbol in self.varying]
        return [*([info["case"]] if self.named else []), *sizes, *([info["dtype"]] if self.dtypes else [])]


# ---- tables


def times(
    lines: Sequence[Line], rivals: Collection[str] = (), limits: Sequence[str] = LIMITS, is_brief: bool = False
) -> Table:
    """Returns a row for each line: HanStack's time, rivals' times and ratios, HanStack's limits.

    rivals: only these, where there are any. limits: those that have columns. is_brief: whether rivals have no
    times, only ratios, and N, d and L columns where they are the same in all rows, too.
    """
    if not lines:
        return Table([], [])
    # A copy is a column of its own, or where it was not timed with each case, a rival.
    is_yardstick = any("copies" in line.own["extra_info"] for line in lines)
    there = {name for line in lines for name in line.rivals if name != OWN}
    names = [n for n in in_order(there) if (not rivals or n in rivals) and not (is_yardstick and n == COPY)]
    infos = [line.own["extra_info"] for line in lines]
    sizes, ways = Sizes(infos, is_brief), dict.fromkeys(line.way for line in lines)
    backends = dict.fromkeys(str(info["backend"]) for info in infos if "backend" in info)
    columns = [*sizes.columns, Column("direction", is_text=True), Column("backend", is_text=True)]
    columns.append(Column("time", layered(OWN)))
    columns += [Column(name, layered(rival)) for rival in names for name in ("time", "ratio")[is_brief:]]
    columns += map(Column, limits)
    rows = []
    for line in lines:
        info = line.own["extra_info"]
        row = [*sizes.cells(info), way_shown(line.way) if len(ways) > 1 else ""]
        row += [str(info.get("backend", "")) if len(backends) > 1 else "", seconds(line.own["stats"]["median"])]
        for b in map(line.rivals.get, names):
            cells = [seconds(b["stats"]["median"]), ratio(b, line.own)] if b else ["", ""]
            row += cells[is_brief:]
        rows.append([*row, *(_limits(line)[name] for name in limits)])
    same = [sizes.about, *(way_shown(way) for way in ways if len(ways) == 1)]
    same += [f"HanStack on {backend}" for backend in backends if len(backends) == 1]
    return filled(columns, rows, "; ".join(filter(None, same)), "direction")


def memory(benchmarks: Iterable[Benchmark], group: str) -> Table:
    """Returns a row for each case of a group: what autograd keeps, and the peak of a forward and backward, by rival."""
    lines = [line for line in lines_of(benchmarks, group, ("both",)) if "saved_bytes" in line.own["extra_info"]]
    if not lines:
        return Table([], [])
    names = in_order({n for line in lines for n, b in line.rivals.items() if "saved_bytes" in b["extra_info"]})
    sizes = Sizes([line.own["extra_info"] for line in lines])
    columns = sizes.columns
    for name in names:
        than = "of y and 1 bit" if name == OWN else "of HanStack's"
        columns += [Column(text, layered(name)) for text in ("kept", than, "peak")]
    rows = []
    for line in lines:
        own, row = line.own["extra_info"], sizes.cells(line.own["extra_info"])
        for name in names:
            info = line.rivals[name]["extra_info"] if name in line.rivals else {}
            kept, least = info.get("saved_bytes"), own["saved_least" if name == OWN else "saved_bytes"]
            share = "" if kept is None else f"{kept / least:.{3 if name == OWN else 1}f}"
            row += ["" if kept is None else size(kept), share, size(info["peak_bytes"]) if "peak_bytes" in info else ""]
        rows.append(row)
    return filled(columns, rows, sizes.about)


def one_thread(benchmarks: Iterable[Benchmark]) -> Table:
    """Returns the CPU's kernels on one thread against the rate of multiply-adds."""
    names = ("case", "kernel", "time", "element-layers/s", "share of issue", "best share")
    rows = []
    for b in benchmarks:
        info = b["extra_info"]
        if info.get("kind") == "share":
            case = info["case"] if ", " in info["case"].partition("L=")[2] else f"{info['case']}, float32"
            shares = (percent(info["share_of_ceiling"]), percent(info["best_share"]))
            rate = f"{info['element_layers_per_s'] / 1e9:.1f} G"
            rows.append([case, info["kernel"], seconds(b["stats"]["median"]), rate, *shares])
    return Table([Column(name, is_text=i < 2) for i, name in enumerate(names)], rows)


def summary(benchmarks: Sequence[Benchmark]) -> str:
    """Returns all tables of a run."""
    found = {heading(group): times(lines_of(benchmarks, group)) for group in groups_in(benchmarks)}
    found |= {f"{heading(group)}: memory": memory(benchmarks, group) for group in groups_in(benchmarks)}
    found["CPU kernels on one thread"] = one_thread(benchmarks)
    return "\n\n".join(f"{title}\n{table}" for title, table in found.items() if table)


def heading(group: str) -> str:
    """Returns the title of a group."""
    return GROUPS[group][0] if group in GROUPS else group
