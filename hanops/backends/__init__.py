"""What runs a Han op and why: the choice, the native module, plain torch, and Triton's kernels."""

from hanops.backends.choice import (
    BACKENDS,
    IMPLEMENTATIONS,
    RULES,
    Explanation,
    Rule,
    current_name,
    explain,
    missing,
    obstacle,
    require,
    select,
    takes_axis,
    use_backend,
)

__all__ = [
    "BACKENDS",
    "IMPLEMENTATIONS",
    "RULES",
    "Explanation",
    "Rule",
    "current_name",
    "explain",
    "missing",
    "obstacle",
    "require",
    "select",
    "takes_axis",
    "use_backend",
]
