"""A page of headings, figures and tables, as one HTML file that needs no other, and as Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .table import Table, escaped

CSS = """:root{--quiet:#595959;--line:#e3e3e3}
body{font:15px/1.55 system-ui,sans-serif;color:#1b1b1b;max-width:1180px;margin:2em auto;padding:0 1.2em}
h1{font-size:1.8em;margin-bottom:.2em}h2{margin-top:3em;padding-top:.6em;border-top:2px solid #1b1b1b;font-size:1.45em}
h3{margin:2.6em 0 .2em;font-size:1.15em}h4{margin:1.6em 0 .3em;font-size:1em}p{margin:.3em 0 .8em;max-width:52em}
a{color:#0072b2}nav ul{padding:0;margin:.4em 0}nav li{display:inline-block;margin-right:1.1em}
img{max-width:100%;border:1px solid var(--line);border-radius:4px}figure{margin:1em 0}
figcaption,.quiet,.legend,caption{color:var(--quiet);font-size:.9em}figcaption{max-width:62em}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25em 1.2em;margin:.6em 0}dt{font-weight:600}dd{margin:0}
.wide{overflow-x:auto;margin:.6em 0}table{border-collapse:collapse;font-size:.85em;white-space:nowrap}
caption{text-align:left;padding-bottom:.3em;font-size:1em}
td,th{padding:.22em .6em;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th{font-weight:600;border-bottom-color:#9a9a9a;vertical-align:bottom}th.over{text-align:center}
.text{text-align:left}.first,th.over{border-left:1px solid var(--line);padding-left:1em}
tr.block td{border-top:2px solid #c4c4c4}td.noisy{color:#8c8c8c}.legend{margin-top:-.2em}
tbody tr:hover{background:#f5f8fa}
@media(max-width:640px){dl{grid-template-columns:1fr}dd{margin-bottom:.5em}}"""


@dataclass(frozen=True)
class Plot:
    """A picture in the page's folder, what it shows in a word, and what is below it."""

    file: str
    image: bytes
    name: str
    caption: str


@dataclass(frozen=True)
class Part:
    """A heading with its text, a plot and tables, each of those with a title of its own where there are several."""

    title: str
    text: str = ""
    plot: Plot | None = None
    tables: Sequence[tuple[str, Table]] = ()


@dataclass(frozen=True)
class Section:
    """What belongs to one machine."""

    title: str
    about: Sequence[str]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A title, a first paragraph, words with what they mean, and sections."""

    title: str
    text: str
    words: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)

    def html(self) -> str:
        """Returns the page with its pictures in it."""
        return "\n".join(_html(self)) + "\n"

    def markdown(self) -> str:
        """Returns the page with links to its pictures, to be read beside them."""
        return "\n\n".join(block for block in _markdown(self) if block) + "\n"

    def plots(self) -> list[Plot]:
        """Returns all pictures."""
        return [part.plot for section in self.sections for part in section.parts if part.plot]


def _anchor(*titles: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(titles).lower()).strip("-")


def _html(page: Page) -> Iterator[str]:
    yield "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    yield f"<title>{html.escape(page.title)}</title><style>{CSS}</style>"
    yield f"<h1>{html.escape(page.title)}</h1><p>{html.escape(page.text)}</p>"
    yield "<nav>"
    for section in page.sections:
        links = (
            f'<li><a href="#{_anchor(section.title, part.title)}">{html.escape(part.title)}</a>'
            for part in section.parts
        )
        title = f'<a href="#{_anchor(section.title)}"><b>{html.escape(section.title)}</b></a>'
        yield f"{title}<ul>{''.join(links)}</ul>"
    yield "</nav>"
    if page.words:
        terms = "".join(f"<dt>{html.escape(word)}<dd>{html.escape(text)}" for word, text in page.words)
        yield f"<h3>What the words mean</h3><dl>{terms}</dl>"
    for section in page.sections:
        yield f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>'
        yield "".join(f"<p class=quiet>{html.escape(line)}</p>" for line in section.about)
        for part in section.parts:
            yield f'<h3 id="{_anchor(section.title, part.title)}">{html.escape(part.title)}</h3>'
            yield f"<p>{html.escape(part.text)}</p>" if part.text else ""
            if part.plot:
                data = base64.b64encode(part.plot.image).decode()
                alt = html.escape(part.plot.name)
                caption = f"<figcaption>{html.escape(part.plot.caption)}</figcaption>"
                yield f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">{caption}</figure>'
            for title, table in part.tables:
                yield (f"<h4>{html.escape(title)}</h4>" if title else "") + table.html()
    yield "</html>"


def _markdown(page: Page) -> Iterator[str]:
    yield f"# {escaped(page.title)}"
    yield escaped(page.text)
    if page.words:
        yield "## What the words mean"
        yield "\n".join(f"- **{escaped(word)}**: {escaped(text)}" for word, text in page.words)
    for section in page.sections:
        yield f"## {escaped(section.title)}"
        yield from map(escaped, section.about)
        for part in section.parts:
            yield f"### {escaped(part.title)}"
            yield escaped(part.text)
            if part.plot:
                yield f"![{escaped(part.plot.name)}]({part.plot.file})"
                yield escaped(part.plot.caption)
            for title, table in part.tables:
                yield f"**{escaped(title)}**" if title else ""
                yield table.markdown()
