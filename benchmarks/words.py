"""What tables and plots call things, and what a reader who sees them first has to know."""

from __future__ import annotations

from collections.abc import Iterable

from .cases import (
    BF16,
    COMPILED,
    COPY,
    DEEP,
    EAGER,
    GRAPH,
    HOUSEHOLDER,
    LINEAR,
    OWN,
    POINTWISE,
    SLIM,
    TF32,
    TRANSPOSED,
    TUNED,
)

RIVALS = {
    OWN: "HanStack",
    LINEAR: "one Linear + ReLU",
    DEEP: "L × (Linear + ReLU)",
    SLIM: "slim Linear + ReLU",
    EAGER: "eager Han",
    COMPILED: "compiled eager Han",
    TUNED: "max-autotuned eager Han",
}
WAYS = {"forward": "forward", "backward": "backward", "both": "forward + backward", "step": "training step"}

# Heading and first line of each part of the page, in its order.
GROUPS = {
    "stack": (
        "Stacks",
        "L Han layers against one Linear + ReLU, and against the same Han layers without fused kernels.",
    ),
    "width": ("Width", "L Han layers against one Linear + ReLU, and against L of them, over the features d of a row."),
    "depth": ("Depth", "L Han layers against one Linear + ReLU, and against L of them, over the layers L."),
    "batch": ("Batch", "L Han layers against one Linear + ReLU, and against L of them, over the rows N."),
    "small networks": (
        "Small networks",
        "The sizes of the paper's experiments, where the cost of a call counts: L Han layers against one Linear + ReLU "
        "and others.",
    ),
    "one layer": ("One Han layer", "A single Han layer (L = 1): what it costs beside a copy of its input."),
    "kernels": (
        "Kernels on large inputs",
        "L Han layers on the backends that are there, beside a copy of their input.",
    ),
    "training step": (
        "Training step",
        "Forward, squared error, backward and fused AdamW: L Han layers against one Linear + ReLU and others.",
    ),
    "torch.compile": ("torch.compile", "L Han layers and one Linear + ReLU, called as they are and compiled."),
    "storage": ("Storage type", "L Han layers in two storage types. Arithmetic is float32 in both."),
    "groups": ("Groups", "G stacks of L Han layers on G inputs in one call, against eager Han layers in a loop."),
    "tokens": ("Tokens", "L Han layers along the tokens of images, as an MLP-Mixer mixes them: x is (N, d, inner)."),
    "channels": ("Channels", "L Han layers along the channels of images, as 1x1 convolutions: x is (N, d, inner)."),
}

SIZES = {
    "N, d, L": "N rows (samples or tokens) of d features each go through L layers. The input x has the shape (N, d)."
}
DEFINED = {
    OWN: "L Han layers as one module of this library. It has 2 d L parameters.",
    LINEAR: "a single dense layer of d × d weights and its ReLU, whatever L is: what one layer costs, against L Han "
    "layers. It has d² + d parameters.",
    DEEP: "as many dense layers as there are Han layers. They have L (d² + d) parameters.",
    SLIM: "two dense layers, from d to L features and back, each with its ReLU. They have about 2 d L parameters, as a "
    "HanStack has.",
    EAGER: "L Han layers as one writes them in PyTorch, one operation after the other.",
    COMPILED: "the same layers through torch.compile.",
    TUNED: "the same layers through torch.compile in its mode max-autotune.",
    HOUSEHOLDER: "one Han layer by torch.linalg.householder_product, which makes the d × d matrix of the reflection.",
    TRANSPOSED: "the same module along the last axis, on a transposed copy of x, and its output transposed back.",
    POINTWISE: "a convolution of d to d channels over one pixel, and its ReLU: a dense layer along the channels.",
    COPY: "a copy of x. It moves the bytes that any layer must move forward.",
}
SUFFIXES = {
    TF32: "float32 products in TensorFloat-32.",
    BF16: "weights and inputs in bfloat16, also where the others are in float32.",
}
IN_GRAPH = "graph"
MEASURES = {
    "forward": "without gradients, as in inference.",
    "backward": "all gradients of an output that is at hand.",
    "forward + backward": "both, without an optimizer.",
    IN_GRAPH: "calls in a CUDA graph, where no launch is waited for.",
    "time": "the median of calls. All rivals of a row take turns in one process. On a GPU inputs rotate, so that they "
    "do not stay in its L2.",
    "ratio": "a rival's time over HanStack's: above 1, HanStack is faster. It is the median of the rounds' ratios, ± "
    "half of its 95 % interval. Its noise is the larger of that and the middle half of the rounds, over the ratio.",
    "copies of x": "HanStack's time over that of a copy of x, in the same turns.",
    "share of copy": "the bytes that the call must move, over its time, as a share of what a large copy reaches. "
    "Tensors that stay in a cache can be over 100 %.",
    "share of issue": "the instructions that the call cannot do without, over its time, as a share of the rate of "
    "independent multiply-adds. A CPU that adds beside its multiply-adds can be over 100 %.",
}


def shown(rival: str) -> str:
    """Returns what a rival is called, with the backend, precision or compiler that its name ends in."""
    base = next((name for name in sorted(RIVALS, key=len, reverse=True) if rival == name or is_of(rival, name)), "")
    return RIVALS[base] + rival.removeprefix(base) if base else rival


def is_of(rival: str, base: str) -> bool:
    """Tells whether a rival is another only in precision, backend or compiler."""
    return rival.startswith(f"{base}, ")


def layered(rival: str) -> str:
    """Returns what a rival is called in a heading, where that must tell how many layers it has."""
    name = shown(rival)
    return f"{name}, L layers" if rival in (OWN, EAGER, COMPILED, TUNED) else name


def way_shown(way: str) -> str:
    """Returns what a direction is called, with whether it ran in a CUDA graph."""
    direction = way.removesuffix(GRAPH)
    return WAYS.get(direction, direction) + way.removeprefix(direction)


def in_order(rivals: Iterable[str]) -> list[str]:
    """Returns rivals in the order of RIVALS, each with those that differ from it in precision, backend or compiler."""
    order = list(RIVALS)

    def place(rival: str) -> tuple[int, str]:
        bases = [i for i, name in enumerate(order) if rival == name or is_of(rival, name)]
        return max(bases, default=len(order)), rival

    return sorted(rivals, key=place)
