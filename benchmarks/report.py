"""Makes the report from benchmarks/results: plots, one HTML page with all of it, and the README's part of it."""

from __future__ import annotations

import argparse
import base64
import html
import json
import re
import textwrap
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import growth
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import table
from cases import COMPILED, DEEP, EAGER, LINEAR, OWN
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
STYLE = {
    OWN: ("#0b6e4f", "o", "-"),
    LINEAR: ("#c8553d", "s", "-"),
    DEEP: ("#8a3324", "D", "--"),
    EAGER: ("#5b7db1", "^", "-"),
    COMPILED: ("#8d6cab", "v", "-"),
}
OTHER = ("#7a7a7a", "x", ":")


def read(file: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Returns a results file and its rows of groups as a frame: extra_info, and the median in seconds."""
    result = json.loads(file.read_text())
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


def about(result: dict[str, Any]) -> str:
    """Returns where and with what a file was measured, in one line."""
    machine, commit = result["machine_info"], result["commit_info"]
    device = machine.get("gpu") or f"{machine['cpu']['brand_raw']}, {machine['threads']} threads"
    version = f"hanops {machine['hanops']} at {commit['id'][:9]}{', changed' if commit.get('dirty') else ''}"
    return f"{device}; {version}; torch {machine['torch']}; {result['datetime'][:10]}"


def _look(name: str) -> dict[str, Any]:
    color, marker, line = STYLE.get(name, OTHER)
    return {"color": color, "marker": marker, "linestyle": line, "markersize": 5, "label": name}


def _figure(result: dict[str, Any], columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(4.0 + 3.6 * columns, 4.4), layout="constrained", squeeze=False)
    figure.supxlabel("\n".join(textwrap.wrap(about(result), 75 * columns)), fontsize=7, color="#555555")
    return figure, list(axes[0])


def _plain(axis: Axis) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace(",", "\N{NARROW NO-BREAK SPACE}"))


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


def _sweep(group: str, axis: str, label: str, fixed: Callable[[pd.Series], str]) -> Callable[..., Figure | None]:
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
            _log(axes, label, "time, ms", f"{title}; {fixed(points.iloc[0])}")
            if group == "width" and LINEAR in by_rival:
                _mark_crossover(axes, by_rival[OWN], by_rival[LINEAR], axis)
        all_axes[0].legend(fontsize=8, frameon=False, loc="best")
        return figure

    return plot


def plot_memory(result: dict[str, Any], frame: pd.DataFrame) -> Figure | None:
    """Plots the peak of memory of a training step, and what autograd keeps, over depth."""
    swept = frame[(frame["group"] == "depth") & (frame["way"] == "both")]
    if swept["peak_bytes"].isna().all() and swept["saved_bytes"].isna().all():
        return None
    figure, all_axes = _figure(result, 2)
    one = swept.iloc[0]
    for axes, column, title in zip(
        all_axes, ("peak_bytes", "saved_bytes"), ("peak of forward + backward", "kept for the backward"), strict=True
    ):
        for name, rows in swept[swept[column] > 0].groupby("rival", sort=False):
            rows = rows.sort_values("layers")
            axes.plot(rows["layers"], rows[column] / 1e6, **_look(str(name)))
        _log(axes, "layers", "memory, MB", f"{title}; N = {one['rows']}, d = {one['features']}, {one['dtype']}")
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
    cases, names = list(dict.fromkeys(rows["case"])), list(dict.fromkeys(rows["rival"]))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        of_rival = rows[rows["rival"] == name].set_index("case")["median"]
        places = [(j + i * width - 0.4 + width / 2, of_rival[c] * 1e3) for j, c in enumerate(cases) if c in of_rival]
        axes.bar([x for x, _ in places], [y for _, y in places], width * 0.92, color=_look(name)["color"], label=name)
    axes.set_yscale("log")
    _plain(axes.yaxis)
    axes.set_xticks(range(len(cases)), cases, fontsize=8)
    axes.set_ylabel("forward + backward, ms")
    axes.set_title("the paper's small networks", fontsize=10)
    axes.grid(True, axis="y", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(y=0.25)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    return figure


PLOTS: dict[str, Callable[[dict[str, Any], pd.DataFrame], Figure | None]] = {
    "width": _sweep("width", "features", "features d", lambda r: f"N = {r['rows']}, L = {r['layers']}"),
    "depth": _sweep("depth", "layers", "layers L", lambda r: f"N = {r['rows']}, d = {r['features']}"),
    "batch": _sweep("batch", "rows", "rows N", lambda r: f"d = {r['features']}, L = {r['layers']}"),
    "memory": plot_memory,
    "roofline": plot_roofline,
    "small-networks": plot_small,
}
CAPTIONS = {
    "width": "Time against width.",
    "depth": "Time against depth.",
    "batch": "Time against the batch.",
    "memory": "Memory against depth. A HanStack keeps its output and one bit for each element and layer.",
    "roofline": "Each point is a HanStack; the line is what the machine allows: a copy's bytes, or its instructions. "
    "Above the slope are tensors that stay in a cache, which the copy leaves.",
    "small-networks": "Small networks, where the cost of a call counts.",
}


def html_table(markdown: str) -> str:
    """Returns a Markdown table as HTML."""
    lines = [line[2:-2].split(" | ") for line in markdown.splitlines() if line]
    if not lines:
        return ""
    head, rows = lines[0], lines[2:]

    def cells(row: list[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell.strip())}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{cells(head, 'th')}</tr>{body}</table></div>"


def frame_table(frame: pd.DataFrame) -> str:
    """Returns a frame as a Markdown table, numbers with three digits."""
    rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return table.markdown([str(column) for column in frame.columns], rows)


def growth_text(frame: pd.DataFrame) -> dict[str, str]:
    """Returns the tables of how cost grows, by title."""
    memory = growth.memory_fits(frame)
    for column in ("saved for each layer", "peak for each layer"):
        if column in memory:
            memory[column] = ["" if pd.isna(v) else table.size(v) for v in memory[column]]
    return {
        f"Exponents of HanStack's time, from {growth.BEYOND} times the shortest call": frame_table(
            growth.time_fits(frame)
        ),
        "Memory for each more layer": frame_table(memory),
    }


CSS = """body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{margin-top:2.2em;border-bottom:1px solid #ddd}h3{margin-top:1.8em;font-size:1.05em}
img{max-width:100%}figure{margin:1.2em 0}figcaption{color:#555;font-size:.92em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.82em;white-space:nowrap}
td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #eee}th{color:#555;font-weight:600}
p.about{color:#555}"""


def section(file: Path, out: Path) -> str:
    """Returns a results file's part of the page, and writes its plots to `out`."""
    result, frame = read(file)
    if frame.empty:
        return ""
    parts = [f"<h2>{html.escape(file.stem)}</h2><p class=about>{html.escape(about(result))}</p>"]
    for name, plot in PLOTS.items():
        figure = plot(result, frame)
        if figure is None:
            continue
        image = out / f"{file.stem}-{name}.png"
        figure.savefig(image, dpi=110)
        plt.close(figure)
        data = base64.b64encode(image.read_bytes()).decode()
        caption = html.escape(CAPTIONS[name])
        parts.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    benchmarks = result["benchmarks"]
    tables = growth_text(frame) | {
        "Times": table.rivals(benchmarks),
        "Against the limits of the machine": table.shares(benchmarks),
        "Kernels on one thread": table.one_thread(benchmarks),
        "Memory": table.memory(benchmarks),
    }
    parts += [f"<h3>{html.escape(title)}</h3>{html_table(text)}" for title, text in tables.items() if text]
    return "\n".join(parts)


def page(files: list[Path], out: Path) -> str:
    """Returns the whole page."""
    sections = [section(file, out) for file in files]
    on_gpu = any("gpu" in json.loads(file.read_text())["machine_info"] for file in files)
    notice = "" if on_gpu else "<h2>GPU</h2><p>Not measured on a GPU: there is no results file of one.</p>"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>hanops benchmarks</title><style>{CSS}</style><h1>hanops benchmarks</h1>"
        "<p>Rivals run in turns in one process. Times are medians; a ratio is the median of each round's ratio to "
        "HanStack, with half of its 95 % interval. "
        "Limits are measured in the same run: a large copy, and independent multiply-adds.</p>"
        f"{''.join(sections)}{notice}</html>\n"
    )


def readme_part(file: Path, out: Path, readme: Path) -> str:
    """Returns the README's plots and table."""
    result, _ = read(file)
    folder = out.resolve().relative_to(readme.resolve().parent).as_posix()
    times = table.rivals(result["benchmarks"], ("stack", "small networks"), ("both",), with_limits=False)
    return "\n\n".join(
        [
            f"{about(result)}. Medians of runs in turns in one process; ratios to HanStack ± half a 95 % interval.",
            f"![time against width]({folder}/{file.stem}-width.png)",
            f"![memory against depth]({folder}/{file.stem}-memory.png)",
            times,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "report")
    parser.add_argument("--readme", type=Path, help="write its part, from cpu.json, between the markers of this file")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for old in given.out.glob("*.png"):
        old.unlink()
    files = sorted(f for f in given.results.glob("*.json") if "benchmarks" in json.loads(f.read_text()))
    (given.out / "index.html").write_text(page(files, given.out))
    if given.readme:
        part = readme_part(given.results / "cpu.json", given.out, given.readme)
        before, after = re.split(f"{BEGIN}.*{END}", given.readme.read_text(), flags=re.DOTALL)
        given.readme.write_text(f"{before}{BEGIN}\n{part}\n{END}{after}")
    print(f"{given.out / 'index.html'}: {len(files)} results files, {len(list(given.out.glob('*.png')))} plots")


if __name__ == "__main__":
    main()
