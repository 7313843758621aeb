"""What is measured, and how it is shown. Programs are run from the repository's root: `python -m benchmarks.report`."""
