"""Makes the report from benchmarks/results: plots, one HTML page with all of it, and the README's part of it."""

from __future__ import annotations

import argparse
import base64
import html
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from hanops._files import write_bytes, write_text

from . import exponents, table
from .cases import COPY, DEEP, LINEAR, OTHERS, OWN
from .plots import CAPTIONS, PLOTS, about, read
from .results_file import PART
from .results_file import read as read_results

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def name_of(file: Path) -> str:
    """Returns what a file is called in the report."""
    return f"{file.name.removesuffix(PART)}, unfinished" if file.name.endswith(PART) else file.stem


def frame_table(frame: pd.DataFrame) -> table.Table:
    """Returns a frame as a table, numbers with three digits."""
    rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in frame.itertuples(index=False)]
    return table.Table([str(column) for column in frame.columns], rows)


def growth_tables(frame: pd.DataFrame) -> dict[str, table.Table]:
    """Returns the tables of how cost grows, by title."""
    memory = exponents.memory_fits(frame)
    for column in ("saved for each layer", "peak for each layer"):
        if column in memory:
            memory[column] = ["" if pd.isna(v) else table.size(v) for v in memory[column]]
    return {
        f"Exponents of HanStack's time, from {exponents.BEYOND} times the shortest call": frame_table(
            exponents.time_fits(frame)
        ),
        "Memory for each more layer": frame_table(memory),
    }


CSS = """body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2em auto;padding:0 1em}
h1{font-size:1.6em}h2{margin-top:2.2em;border-bottom:1px solid #ddd}h3{margin-top:1.8em;font-size:1.05em}
img{max-width:100%}figure{margin:1.2em 0}figcaption{color:#555;font-size:.92em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.82em;white-space:nowrap}
td,th{padding:.25em .7em;text-align:left;border-bottom:1px solid #eee}th{color:#555;font-weight:600}
p.about{color:#555}"""


def section(file: Path, out: Path, written: list[Path]) -> str:
    """Returns a results file's part of the page; writes its plots to `out`, and adds them to `written`."""
    result, frame = read(file)
    if frame.empty:
        return ""
    parts = [f"<h2>{html.escape(name_of(file))}</h2><p class=about>{html.escape(about(result))}</p>"]
    if file.name.endswith(PART):
        parts.append("<p>This run was cut short: what it did not come to is missing.</p>")
    for name, plot in PLOTS.items():
        figure = plot(result, frame)
        if figure is None:
            continue
        image = io.BytesIO()
        figure.savefig(image, dpi=110)
        plt.close(figure)
        written.append(out / f"{file.stem}-{name}.png")
        write_bytes(written[-1], image.getvalue())
        data = base64.b64encode(image.getvalue()).decode()
        caption = html.escape(CAPTIONS[name])
        parts.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    benchmarks = result["benchmarks"]
    tables = growth_tables(frame) | {
        "Times": table.rivals(benchmarks),
        "Against the limits of the machine": table.shares(benchmarks),
        "Kernels on one thread": table.one_thread(benchmarks),
        "Memory": table.memory(benchmarks),
    }
    parts += [f"<h3>{html.escape(title)}</h3>{found.html()}" for title, found in tables.items() if found]
    return "\n".join(parts)


def page(files: list[Path], out: Path) -> tuple[str, list[Path]]:
    """Returns the whole page, and the plots that were written to `out`."""
    written: list[Path] = []
    sections = [section(file, out, written) for file in files]
    on_gpu = any("gpu" in read_results(file)["machine_info"] for file in files)
    notice = "" if on_gpu else "<h2>GPU</h2><p>Not measured on a GPU: there is no results file of one.</p>"
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>hanops benchmarks</title><style>{CSS}</style><h1>hanops benchmarks</h1>"
        "<p>Rivals run in turns in one process. Times are medians; a ratio is the median of each round's ratio to "
        "HanStack, with half of its 95 % interval. "
        "Limits are measured in the same run: a large copy, and independent multiply-adds, whose rate is that of "
        "issue. On a GPU a copy of each case's input also takes its turns: 'in copies of x' is the time over that "
        "copy's. Inputs rotate there, so that they do not stay in the L2; calls in a CUDA graph too.</p>"
        f"{''.join(sections)}{notice}</html>\n"
    )
    return text, written


# Of a GPU; the page has more groups, and up to sixteen rivals.
README_RIVALS = (OWN, OTHERS[1], LINEAR, DEEP, COPY)
README_ROWS = {
    "one layer": ("forward, graph", "both, graph"),
    "kernels": ("forward", "backward"),
    "small networks": ("both, graph",),
    "depth": ("both",),
}


def readme_part(file: Path, gpus: list[Path], out: Path, readme: Path) -> str:
    """Returns the README's plots and tables: of the CPU, and of each GPU."""
    result, _ = read(file)
    folder = out.resolve().relative_to(readme.resolve().parent).as_posix()
    parts = []
    for gpu in gpus:
        measured = read(gpu)[0]
        shown = [
            b
            for b in measured["benchmarks"]
            if b["extra_info"].get("rival") in README_RIVALS
            and b["extra_info"]["way"] in README_ROWS.get(b["extra_info"]["group"], ())
        ]
        parts += [
            f"{table.escaped(about(measured))}. 'Graph' is a CUDA graph, in which no launch is waited for.",
            table.rivals(shown).markdown(),
        ]
    times = table.rivals(result["benchmarks"], ("stack", "small networks"), ("both",), with_limits=False)
    return "\n\n".join(
        [
            f"{table.escaped(about(result))}. Medians of runs in turns in one process; ratios to HanStack ± half a "
            "95 % interval.",
            f"![time against width]({folder}/{file.stem}-width.png)",
            f"![memory against depth]({folder}/{file.stem}-memory.png)",
            times.markdown(),
            *parts,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "report")
    parser.add_argument("--readme", type=Path, help="write its part, from cpu.json, between the markers of this file")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    files = []
    for file in sorted(given.results.glob("*.json")):
        try:
            read_results(file)
            files.append(file)
        except ValueError as error:  # of another program, say
            print(f"left out: {error}")
    text, written = page(files, given.out)
    write_text(given.out / "index.html", text)
    for old in set(given.out.glob("*.png")) - set(written):
        old.unlink()
    if given.readme:
        gpus = [file for file in files if "gpu" in read_results(file)["machine_info"] and not file.name.endswith(PART)]
        part = readme_part(given.results / "cpu.json", gpus, given.out, given.readme)
        before, after = re.split(f"{BEGIN}.*{END}", given.readme.read_text(), flags=re.DOTALL)
        write_text(given.readme, f"{before}{BEGIN}\n{part}\n{END}{after}")
    print(f"{given.out / 'index.html'}: {len(files)} results files, {len(written)} plots")


if __name__ == "__main__":
    main()
