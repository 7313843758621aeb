"""The tests: `pytest` from the repository's root, which is the path that they are imported by."""
