"""Writes the generated parts of the documentation anew and builds the site: `make docs`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from docs.tools import api

REPOSITORY = Path(__file__).parents[2]


def written() -> dict[Path, str]:
    """Returns what the programs here write, by file."""
    return api.pages()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.tools", description=__doc__)
    parser.add_argument("--site", type=Path, default=REPOSITORY / "build" / "site", help="folder of the site")
    given = parser.parse_args()
    for path, text in written().items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"{path.relative_to(REPOSITORY)} is new")
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(given.site)]
    # The theme advertises its successor.
    status = subprocess.run(mkdocs, cwd=REPOSITORY, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode
    if status == 0:
        print(f"{given.site / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
