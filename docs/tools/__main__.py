"""Writes the generated parts of the documentation anew and builds the site: `make docs`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from docs.tools import api, excerpts, figures, rooms

REPOSITORY = Path(__file__).parents[2]


def written() -> dict[Path, str]:
    """Returns what the programs here write, by file."""
    drawn = {rooms.FILE: rooms.figure(), **figures.figures()}
    return {**api.pages(), **drawn, **{page: excerpts.written(page) for page in excerpts.PAGES}}


def build(site: Path) -> tuple[int, str]:
    """Builds the site, and returns MkDocs' exit status, which is not 0 after a warning, and its warnings."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme advertises its successor
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("INFO")]
    return done.returncode, "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.tools", description=__doc__)
    parser.add_argument("--site", type=Path, default=REPOSITORY / "build" / "site", help="folder of the site")
    given = parser.parse_args()
    for path, text in written().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"{path.relative_to(REPOSITORY)} is new")
    status, warnings = build(given.site)
    print(warnings, end="", file=sys.stderr)
    if status == 0:
        print(f"{given.site / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
