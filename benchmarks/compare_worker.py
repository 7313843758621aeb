"""One tree's side of compare.py: gets a row's call ready and times it when it is asked to, a line of JSON each way.

It comes from the tree that compares and runs on the hanops that is first on PYTHONPATH, of any revision. So it runs as
a file, calls only what every revision has, and imports no other module of this tree.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import timeit
from collections.abc import Callable
from typing import Any, TextIO

import torch

import hanops

WARMUP = 3


def prepared(rows: int, features: int, layers: int, dtype: torch.dtype, direction: str) -> Callable[[], object]:
    """Returns the call of a row."""
    torch.manual_seed(0)
    x = torch.randn(rows, features, dtype=dtype, requires_grad=direction == "forward + backward")
    dy = torch.randn(rows, features, dtype=dtype)
    stack = hanops.HanStack(features, layers, dtype=dtype)
    if direction == "forward + backward":
        inputs = [x, *stack.parameters()]

        def step() -> None:
            for t in inputs:
                t.grad = None
            stack(x).backward(dy)

        return step
    stack.requires_grad_(False)
    u, b = stack.u, stack.b
    forward, backward = torch.ops.hanops.han_stack_forward, torch.ops.hanops.han_stack_backward
    if direction == "backward":
        y, signs = forward(x, u, b, True, True)
        return lambda: backward(dy, y, signs, u, b, True, [True, True, True])
    save = {"forward": False, "forward with bits": True}[direction]
    return lambda: forward(x, u, b, True, save)


def answer(request: dict[str, Any], row: list[timeit.Timer]) -> dict[str, Any]:
    """Returns the answer to one request. `row` holds the timer of the call that is ready, none or one."""
    if request["do"] == "prepare":
        row.clear()
        gc.collect()
        sizes = (request["rows"], request["features"], request["layers"], getattr(torch, request["dtype"]))
        row.append(timeit.Timer(prepared(*sizes, request["direction"])))
        return {"seconds": min(row[0].repeat(WARMUP, number=1))}
    row[0].timeit(1)  # not counted: the caches and threads come back from another worker's turn
    return {"seconds": row[0].timeit(request["calls"]) / request["calls"]}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers until there are no more requests."""

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    say(
        {
            "package": os.path.dirname(hanops.__file__),
            "native": importlib.util.find_spec("hanops._C") is not None,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
    )
    row: list[timeit.Timer] = []
    gc.disable()
    for line in requests:
        try:
            say(answer(json.loads(line), row))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed does not get between the answers
    serve(sys.stdin, channel)
