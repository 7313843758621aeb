"""The papers' experiments. Run them from the repository's root: `python -m examples.checkerboard --help`."""
