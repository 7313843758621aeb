"""Makes the report from benchmarks/results: plots, a page of them, and parts of the README and the docs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from hanops.profiling.files import write_bytes, write_text

from .documents import long_part, overview_of, short_part, write_part
from .page import Page, Plot, Section
from .runs import is_unfinished, shown_files
from .sections import Drawer
from .words import DEFINED, IN_GRAPH, MEASURES, SIZES, SUFFIXES, in_order, is_of, shown

HERE = Path(__file__).parent


def words_of(frames: Iterable[pd.DataFrame], is_on_gpu: bool) -> list[tuple[str, str]]:
    """Returns the words of a page with what they mean: those that are in it."""
    rivals = {rival for frame in frames if not frame.empty for rival in frame["rival"]}
    defined = {
        shown(name): DEFINED[name] for name in in_order(DEFINED) if any(r == name or is_of(r, name) for r in rivals)
    }
    suffixes = {s.strip(", "): text for s, text in SUFFIXES.items() if any(rival.endswith(s) for rival in rivals)}
    measures = {word: text for word, text in MEASURES.items() if is_on_gpu or word != IN_GRAPH}
    return list({**SIZES, **defined, **suffixes, **measures}.items())


def page_of(drawers: Sequence[Drawer]) -> Page:
    """Returns the page of results files."""
    sections = [section for section in (drawer.section() for drawer in drawers) if section]
    on_gpu = any(drawer.is_gpu for drawer in drawers)
    if not on_gpu:
        sections.append(Section("GPU", ["Not measured on a GPU: there is no results file of one."], []))
    text = (
        "hanops runs a stack of L Han layers, each a reflection, a bias and an absolute value, in one kernel. Here are "
        "its times and its memory beside those of dense layers and of the same layers without such kernels."
    )
    return Page("hanops benchmarks", text, words_of((drawer.frame for drawer in drawers), on_gpu), sections)


def write_page(page: Page, pictures: Iterable[Plot], out: Path) -> None:
    """Writes pictures and a page to a folder, as index.html and README.md; removes other pictures from it."""
    out.mkdir(parents=True, exist_ok=True)
    old = set(out.glob("*.png"))
    for plot in pictures:
        write_bytes(out / plot.file, plot.image)
        old.discard(out / plot.file)
    for file in old:
        file.unlink()
    write_text(out / "index.html", page.html())
    write_text(out / "README.md", page.markdown())


def write_documents(drawers: Sequence[Drawer], out: Path, readme: Path | None, docs: Path | None) -> list[Plot]:
    """Writes the parts of the README and of docs/performance.md; returns their plot.

    Raises:
        ValueError: where there is no cpu.json, or a document has no markers.
    """
    cpu = next((drawer for drawer in drawers if drawer.file.name == "cpu.json"), None)
    if cpu is None:
        raise ValueError(
            f"--readme and --docs need cpu.json, got {', '.join(d.file.name for d in drawers) or 'no file'}"
        )
    gpus = [drawer for drawer in drawers if drawer.is_gpu and not is_unfinished(drawer.file)]
    overview = overview_of(cpu)
    for document in filter(None, (readme, docs)):
        folder = Path(os.path.relpath(out, document.parent)).as_posix()
        is_short = document == readme
        write_part(document, short_part(cpu, overview, folder) if is_short else long_part(cpu, gpus, overview, folder))
    return [overview] if overview else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE / "report")
    parser.add_argument("--readme", type=Path, help="write the plot of cpu.json between the markers of this file")
    parser.add_argument("--docs", type=Path, help="write the plot and short tables between the markers of this file")
    given = parser.parse_args()
    files, said = shown_files(sorted(given.results.glob("*.json")))
    for line in said:
        print(line)
    drawers = [Drawer(file) for file in files]
    page = page_of(drawers)
    pictures = page.plots()
    if given.readme or given.docs:
        try:
            pictures += write_documents(drawers, given.out, given.readme, given.docs)
        except ValueError as error:
            parser.error(str(error))
    write_page(page, pictures, given.out)
    print(f"{given.out / 'index.html'}: {len(files)} results files, {len(pictures)} plots")


if __name__ == "__main__":
    main()
