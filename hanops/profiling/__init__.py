"""Measures kernels and what limits them: shared by `python -m hanops` and the benchmarks."""
