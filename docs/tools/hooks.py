"""Lets the site hold what lies outside of docs/: CONTRIBUTING.md, the changelog, and each file that a page links to.

Links in the pages are those that GitHub understands, relative to the repository. MkDocs knows only pages in docs/. So a
link to an image elsewhere brings the image along, and a link to a source file or a folder makes a page of it.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

REPOSITORY = Path(__file__).parents[2]
sys.path.append(str(REPOSITORY))
from docs.tools.excerpts import why  # noqa: E402  MkDocs loads this file alone

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PAGES["benchmarks/report/README.md"] = "benchmarks.md"
IMAGES = (".png", ".svg")
LANGUAGES = {
    ".py": "python",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".h": "cpp",
    ".cpp": "cpp",
    ".toml": "toml",
    ".pyi": "python",
}
LANGUAGES |= {"Makefile": "make", "CMakeLists.txt": "cmake", ".yml": "yaml"}

SOURCE = """<!doctype html><html lang=en><meta charset=utf-8><title>{path}</title><style>
body {{ font-family: system-ui, sans-serif; margin: 1.5em 2em; color-scheme: light dark; }}
pre {{ font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }}
{light}
@media (prefers-color-scheme: dark) {{ {dark} }}
pre, .highlight {{ background: none; }}
</style><h3>{path}</h3>{code}</html>
"""
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(^ *(`{3,}).*?^ *\2`*$|`[^`\n]+`)", flags=re.DOTALL | re.MULTILINE)
MATHS = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
PRIME = re.compile(r"<msup>(<m[io]>[^<]*</m[io]>)<mi>&#x02032;</mi></msup>")  # raised twice otherwise
NOTE = re.compile(r"^Arguments, .*The site, which `make docs` builds, shows them here\.\n\n", flags=re.MULTILINE)
API = re.compile(r"^## (\w+)\n.*?<!-- api: (\S+) -->\n", flags=re.DOTALL | re.MULTILINE)


def home(uri: str) -> str:
    """Returns where a page of the site lies in the repository."""
    outside = {page: path for path, page in PAGES.items() if page != "index.md"}
    return outside.get(uri, f"docs/{uri}")


def place(path: str) -> str:
    """Returns where a file of the repository lies in the site's sources."""
    if path in PAGES:
        return PAGES[path]
    if (REPOSITORY / path).is_dir():
        return f"source/{path}/index.md"
    if path.startswith("docs/") and not path.startswith("docs/tools/"):
        return path.removeprefix("docs/")
    return path if path.endswith(IMAGES) else f"source/{path}.html"


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Returns the text, changed where it is no code."""
    parts = CODE.split(markdown)  # text, code, its fence, text, ...
    return "".join(change(part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 < 2)


def targets(markdown: str, folder: str) -> set[str]:
    """Returns the files and folders of the repository that a page in `folder` links to."""
    found: set[str] = set()

    def collect(text: str) -> str:
        found.update(normpath(f"{folder}/{match[2]}") for match in LINK.finditer(text))
        return text

    outside_code(markdown, collect)
    return {path for path in found if (REPOSITORY / path).exists()}


def is_source(path: Path) -> bool:
    """Tells source files, and folders that hold one."""
    if path.is_dir():
        return path.name != "__pycache__" and any(is_source(inner) for inner in path.iterdir())
    return path.suffix in LANGUAGES or path.name in LANGUAGES


def folder_page(path: str) -> str:
    """Returns a folder as a page: its files, and why each exists."""
    rows = ["| file | why it exists |", "|---|---|"]
    for file in sorted((REPOSITORY / path).iterdir(), key=lambda file: (file.is_dir(), file.name)):
        if is_source(file):
            rows.append(f"| [{file.name}]({file.name}) | {why(file) if file.is_file() else ''} |")
    return f"# {path}\n\n" + "\n".join(rows) + "\n"


def file_page(path: str) -> str:
    """Returns a source file as a page of its own, without the site's frame: there are many."""
    styles = [HtmlFormatter(style=style).get_style_defs("pre") for style in ("default", "github-dark")]
    code = highlight((REPOSITORY / path).read_text(), get_lexer_by_name(language(path)), HtmlFormatter(linenos=False))
    return SOURCE.format(path=path, light=styles[0], dark=styles[1], code=code)


def language(path: str) -> str:
    """Returns the language of a file by its name. Colours take time: only the package and its kernels have them."""
    if not path.startswith(("hanops/", "csrc/")):
        return "text"
    return LANGUAGES.get(Path(path).suffix) or LANGUAGES.get(Path(path).name, "text")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages and images from outside of docs/."""
    for path, uri in PAGES.items():
        if uri != "index.md" and (REPOSITORY / path).exists():
            files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / path)))
    queue = {path for page in files.documentation_pages() for path in targets(page.content_string, folder_of(page))}
    done: set[str] = set()
    while queue:
        path = queue.pop()
        done.add(path)
        uri = place(path)
        if files.get_file_from_path(uri):
            continue
        if path.endswith(IMAGES):
            files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / path)))
            continue
        if not (REPOSITORY / path).is_dir():
            files.append(File.generated(config, uri, content=file_page(path)))
            continue
        content = folder_page(path)
        queue |= targets(content, path) - done
        files.append(File.generated(config, uri, content=f"---\nsearch:\n  exclude: true\n---\n{content}"))
    return files


def folder_of(page: File) -> str:
    """Returns the repository's folder that a page's links start from."""
    uri = page.src_uri
    if uri.startswith("source/"):
        return uri.removeprefix("source/").removesuffix("/index.md")
    return str(PurePosixPath(home(uri)).parent)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the repository's links into the site's, and entries of the reference into docstrings."""
    uri = page.file.src_uri
    if uri.startswith("api/"):
        entry = '<span id="{}"></span>\n\n::: {}\n'  # the anchor is GitHub's
        markdown = API.sub(lambda match: entry.format(match[1].lower(), match[2]), NOTE.sub("", markdown))
    folder, here = folder_of(page.file), str(PurePosixPath(uri).parent)

    def change(match: re.Match[str]) -> str:
        path = normpath(f"{folder}/{match[2]}")
        if not (REPOSITORY / path).exists():
            return match[0]  # MkDocs says that it is not there
        return f"{match[1]}{relpath(place(path), here)}{match[3] or ''}{match[4]}"

    return outside_code(markdown, lambda text: LINK.sub(change, text))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers show by themselves."""

    def formula(match: re.Match[str]) -> str:
        maths = convert(html.unescape(match[2]).strip(), display="block" if match[1] == "div" else "inline")
        return PRIME.sub(r"\1<mo>&#x2032;</mo>", maths)

    return MATHS.sub(formula, content)
