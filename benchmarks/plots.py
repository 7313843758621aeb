"""The report's plots: each is made from one results file, and is None where that has no such rows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from .cases import BF16, COMPILED, COPY, DEEP, DTYPES, EAGER, LINEAR, OWN, SLIM, TF32, TUNED, Case
from .results_file import read as read_results

STYLE = {
    OWN: ("#0b6e4f", "o", "-"),
    f"{OWN}, cuda": ("#4fb0a0", "P", ":"),
    f"{OWN}, triton": ("#6aa84f", "X", "--"),
    LINEAR: ("#c8553d", "s", "-"),
    DEEP: ("#8a3324", "D", "--"),
    SLIM: ("#d9962f", "p", "-"),
    EAGER: ("#5b7db1", "^", "-"),
    COMPILED: ("#8d6cab", "v", "-"),
    TUNED: ("#5e3c80", "<", "-"),
    COPY: ("#222222", ".", ":"),
}
OTHER = ("#7a7a7a", "x", ":")
LIGHTER = {TF32: 0.65, BF16: 0.35}  # opacity of a dense layer in a lower precision


def read(file: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns a results file and its rows of groups as a frame: extra_info, and the median in seconds."""
    result = read_results(file)
    rows = [
        b["extra_info"] | {"median": b["stats"]["median"], "iqr": b["stats"]["iqr"]}
        for b in result["benchmarks"]
        if b["extra_info"].get("kind") == "group"
    ]
    frame = pd.DataFrame(rows)
    if not frame.empty:
        for column in ("peak_bytes", "saved_bytes", "share_of_copy", "share_of_instructions"):
            if column not in frame:
                frame[column] = float("nan")
        frame["element_layers"] = frame["rows"] * frame["features"] * frame["layers"]
    return result, frame


def gpu(machine: dict[str, Any]) -> str:
    """Returns a GPU's name with its clocks while it was measured and its limits, as far as they are known."""
    measured = {**machine, **machine.get("clocks", {})}
    clock = {name: f"{measured[name]:.0f}" for name in ("sm_mhz", "most_sm_mhz", "memory_mhz") if name in measured}
    parts = [
        machine["gpu"],
        f"{' of at most '.join(v for k, v in clock.items() if k != 'memory_mhz')} MHz" if "sm_mhz" in clock else "",
        f"memory {clock['memory_mhz']} MHz" if "memory_mhz" in clock else "",
        f"{measured['power_w']:.0f} W" if "power_w" in measured else "",
        f"cap {machine['power_cap_w']:.0f} W" if "power_cap_w" in machine else "",
        *(f"{name} {machine[key]}" for key, name in (("driver", "driver"), ("cuda", "CUDA")) if machine.get(key)),
    ]
    return ", ".join(part for part in parts if part)


def about(result: dict[str, Any]) -> str:
    """Returns where and with what a file was measured, in one line."""
    machine, commit = result["machine_info"], result["commit_info"]
    device = gpu(machine) if machine.get("gpu") else f"{machine['cpu']['brand_raw']}, {machine['threads']} threads"
    version = f"hanops {machine['hanops']} at {commit['id'][:9]}{', changed' if commit.get('dirty') else ''}"
    triton = f", Triton {machine['triton']}" if machine.get("gpu") and machine.get("triton") else ""
    return f"{device}; {version}; torch {machine['torch']}{triton}; {result['datetime'][:10]}"


def _look(name: str) -> dict[str, Any]:
    suffix = next((suffix for suffix in LIGHTER if name.endswith(suffix)), "")
    color, marker, line = STYLE.get(name.removesuffix(suffix), OTHER)
    look = {"color": color, "marker": marker, "linestyle": line, "markersize": 5, "label": name}
    return look | {"alpha": LIGHTER.get(suffix, 1.0)}


def _figure(result: dict[str, Any], columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(4.0 + 3.6 * columns, 4.4), layout="constrained", squeeze=False)
    figure.supxlabel("\n".join(textwrap.wrap(about(result), 75 * columns)), fontsize=7, color="#555555")
    return figure, list(axes[0])


def _plain(axis: Axis) -> None:
    def text(value: float, _: object) -> str:
        return f"{value:,.10g}".replace(",", "\N{NARROW NO-BREAK SPACE}")

    def between(value: float, _: object) -> str:
        """Names 2 and 5 of a decade, where an axis has no more than two."""
        low, high = axis.get_view_interval()
        return text(value, _) if high < 100 * low and f"{value:e}"[0] in "25" else ""

    axis.set_major_formatter(text)
    axis.set_minor_formatter(between)


def _log(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", color="#e3e3e3", linewidth=0.7)
    _plain(axes.xaxis)
    _plain(axes.yaxis)


def crossover(own: pd.DataFrame, other: pd.DataFrame, axis: str) -> float | None:
    """Returns where HanStack's time becomes less than a rival's, between two points on logarithmic axes."""
    both = own.merge(other, on=axis, suffixes=("", "_other")).sort_values(axis)
    ratio = (both["median"] / both["median_other"]).to_numpy()
    sizes = both[axis].to_numpy()
    for i in range(1, len(sizes)):
        if ratio[i - 1] > 1 >= ratio[i]:
            part = log(ratio[i - 1]) / (log(ratio[i - 1]) - log(ratio[i]))
            return exp(log(sizes[i - 1]) + part * (log(sizes[i]) - log(sizes[i - 1])))
    return None


def _mark_crossover(axes: Axes, own: pd.DataFrame, dense: pd.DataFrame, axis: str) -> None:
    meets = crossover(own, dense, axis)
    both = own.merge(dense, on=axis, suffixes=("", "_dense"))
    always = bool((both["median"] <= both["median_dense"]).all())
    if meets:
        axes.axvline(meets, color="#999999", linewidth=0.8, linestyle=":")
        text = f"HanStack is faster than one\nLinear + ReLU from d = {meets:.0f}"
    else:
        text = f"HanStack is {'faster' if always else 'not faster'} than one\nLinear + ReLU at all of these widths"
    axes.annotate(text, (0.98, 0.03), xycoords="axes fraction", ha="right", fontsize=8, color="#555555")


def _fixed(points: pd.DataFrame) -> str:
    """Returns the sizes that a sweep does not change, and the storage type."""
    one = points.iloc[0]
    texts = [
        f"{symbol} = {one[name]:,}"
        for name, symbol in (("rows", "N"), ("features", "d"), ("layers", "L"))
        if points[name].nunique() == 1
    ]
    if points["rows"].nunique() > 1 and points["features"].nunique() > 1:
        texts.insert(0, f"N d = {int((points['rows'] * points['features']).median()):,}")
    return ", ".join([*texts, *([one["dtype"]] if points["dtype"].nunique() == 1 else [])])


def _sweep(group: str, axis: str, label: str) -> Callable[..., Figure | None]:
    def plot(result: dict[str, Any], frame: pd.DataFrame) -> Figure | None:
        swept = frame[(frame["group"] == group) & ~frame["way"].str.contains("graph")]
        ways = [way for way in ("forward", "both") if (swept["way"] == way).any()]
        if swept.empty or not ways:
            return None
        figure, all_axes = _figure(result, len(ways))
        for axes, way in zip(all_axes, ways, strict=True):
            points = swept[swept["way"] == way]
            by_rival = {name: rows.sort_values(axis) for name, rows in points.groupby("rival", sort=False)}
            for name, rows in by_rival.items():
                axes.plot(rows[axis], rows["median"] * 1e3, **_look(str(name)))
            title = {"forward": "forward, no gradients", "both": "forward + backward"}[way]
            _log(axes, label, "time, ms", f"{title}\n{_fixed(points)}")
            if group == "width" and LINEAR in by_rival:
                _mark_crossover(axes, by_rival[OWN], by_rival[LINEAR], axis)
        all_axes[0].legend(fontsize=8, frameon=False, loc="best")
        return figure

    return plot


def plot_copies(result: dict[str, Any], frame: pd.DataFrame) -> Figure | None:
    """Plots the time of one layer in copies of its input."""
    if "copies" not in frame:
        return None
    rows = frame[(frame["group"] == "one layer") & frame["copies"].notna() & frame["way"].isin(["forward", "both"])]
    if rows.empty:
        return None
    figure, (axes,) = _figure(result)
    places = list(dict.fromkeys(zip(rows["way"], rows["features"], rows["dtype"], strict=True)))
    places.sort(key=lambda place: (place[0] != "forward", place[2] != "float32", place[1]))
    names = list(dict.fromkeys(rows["rival"]))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        own = rows[rows["rival"] == name].set_index(["way", "features", "dtype"])
        at = [(j + (i + 0.5) * width - 0.4, place) for j, place in enumerate(places) if place in own.index]
        heights, noise = ([own.loc[place, column] for _, place in at] for column in ("copies", "copies_noise"))
        color = _look(name)["color"]
        axes.bar([x for x, _ in at], heights, 0.92 * width, yerr=noise, color=color, label=name, ecolor="#999999")
    for j, (way, features, dtype) in enumerate(places):
        one = rows[(rows["features"] == features) & (rows["dtype"] == dtype)].iloc[0]
        case = Case(int(one["rows"]), features, 1, DTYPES[dtype])
        least = case.bytes_moved(way) / case.bytes_moved("forward")
        axes.plot([j - 0.45, j + 0.45], [least, least], color="#222222", linewidth=1.2)
    axes.set_xticks(range(len(places)), [f"{w}\nd = {d:,}\n{t}" for w, d, t in places], fontsize=7)
    axes.set_ylabel("time in copies of x")
    axes.set_title("one layer against a copy", fontsize=10)
    axes.grid(True, axis="y", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def plot_memory(result: dict[str, Any], frame: pd.DataFrame) -> Figure | None:
    """Plots the peak of memory of a training step, and what autograd keeps, over depth."""
    swept = frame[(frame["group"] == "depth") & (frame["way"] == "both")]
    if swept["peak_bytes"].isna().all() and swept["saved_bytes"].isna().all():
        return None
    figure, all_axes = _figure(result, 2)
    for axes, column, title in zip(
        all_axes, ("peak_bytes", "saved_bytes"), ("peak of forward + backward", "kept for the backward"), strict=True
    ):
        for name, rows in swept[swept[column] > 0].groupby("rival", sort=False):
            rows = rows.sort_values("layers")
            axes.plot(rows["layers"], rows[column] / 1e6, **_look(str(name)))
        _log(axes, "layers", "memory, MB", f"{title}; {_fixed(swept)}")
    all_axes[0].legend(fontsize=8, frameon=False)
    return figure


def plot_roofline(result: dict[str, Any], frame: pd.DataFrame) -> Figure | None:
    """Plots operations per second over operations per byte, under the two limits of the machine."""
    limits = result["machine_info"].get("ceilings")
    own = frame[(frame["rival"] == OWN) & frame["share_of_instructions"].notna() & ~frame["way"].str.contains("graph")]
    if not limits or own.empty:
        return None
    figure, (axes,) = _figure(result)
    peak, bandwidth = limits["operations_per_s"], limits["copy_bytes_per_s"]
    rate = own["share_of_instructions"] * peak
    intensity = rate * own["median"] / own["bytes_moved"]
    low, high = intensity.min() / 2, intensity.max() * 2
    xs = [low, peak / bandwidth, high] if low < peak / bandwidth < high else [low, high]
    axes.plot(xs, [min(peak, bandwidth * x) / 1e9 for x in xs], color="#333333", linewidth=1.2)
    looks = {"depth": "o", "width": "s", "batch": "^"}
    ways = {"forward": "#0b6e4f", "backward": "#c8553d", "both": "#5b7db1"}
    for (group, way), rows in own.groupby(["group", "way"], sort=False):
        if group in looks and way in ways:
            label = f"{group}, {'forward + backward' if way == 'both' else way}"
            place = rows.index
            axes.scatter(intensity[place], rate[place] / 1e9, color=ways[way], marker=looks[group], s=22, label=label)
    _log(axes, "vector operations of one element for each byte moved", "operations, G/s", "HanStack under both limits")
    axes.annotate(
        f"copy, {bandwidth / 1e9:.0f} GB/s",
        (low, bandwidth * low / 1e9),
        fontsize=8,
        xytext=(16, -2),
        textcoords="offset points",
    )
    axes.annotate(
        f"instructions, {peak / 1e9:.0f} G/s",
        (high, peak / 1e9),
        fontsize=8,
        ha="right",
        xytext=(0, 4),
        textcoords="offset points",
    )
    axes.set_ylim(top=peak / 1e9 * 3)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def plot_small(result: dict[str, Any], frame: pd.DataFrame) -> Figure | None:
    """Plots forward + backward of the paper's small networks as bars."""
    rows = frame[(frame["group"] == "small networks") & (frame["way"] == "both")]
    if rows.empty:
        return None
    figure, (axes,) = _figure(result)
    rows = rows[rows["rival"] != COPY]
    cases, names = list(dict.fromkeys(rows["case"])), list(dict.fromkeys(rows["rival"]))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        of_rival = rows[rows["rival"] == name].set_index("case")["median"]
        places = [(j + i * width - 0.4 + width / 2, of_rival[c] * 1e3) for j, c in enumerate(cases) if c in of_rival]
        look = {key: value for key, value in _look(name).items() if key in ("color", "alpha", "label")}
        axes.bar([x for x, _ in places], [y for _, y in places], width * 0.92, **look)
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.set_xticks(range(len(cases)), cases, fontsize=8)
    axes.set_ylabel("forward + backward, ms")
    axes.set_title("the paper's small networks", fontsize=10)
    axes.grid(True, axis="y", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    if len(names) > 6:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        axes.margins(y=0.25)
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    return figure


PLOTS: dict[str, Callable[[dict[str, Any], pd.DataFrame], Figure | None]] = {
    "copies": plot_copies,
    "width": _sweep("width", "features", "features d"),
    "depth": _sweep("depth", "layers", "layers L"),
    "batch": _sweep("batch", "rows", "rows N"),
    "memory": plot_memory,
    "roofline": plot_roofline,
    "small-networks": plot_small,
}
CAPTIONS = {
    "copies": "One layer against a copy of its input, timed in the same turns. The lines are the bytes that no kernel "
    "can do without.",
    "width": "Time against width.",
    "depth": "Time against depth.",
    "batch": "Time against the batch.",
    "memory": "Memory against depth. A HanStack keeps its output and one bit for each element and layer.",
    "roofline": "Each point is a HanStack; the line is what the machine allows: a copy's bytes, or its instructions. "
    "Above the slope are tensors that stay in a cache, which the copy leaves.",
    "small-networks": "Small networks, where the cost of a call counts.",
}
