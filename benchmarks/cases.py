"""What is measured: sizes of stacks and their inputs, in groups that each answer one question."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}

OWN, LINEAR, DEEP, SLIM = "HanStack", "Linear + ReLU", "Linear + ReLU, as deep", "Linear + ReLU, as many parameters"
EAGER, COMPILED, HOUSEHOLDER, COPY = "eager Han", "compiled eager Han", "householder_product", "copy"
TRANSPOSED, POINTWISE = f"{OWN}, on a transposed copy", "1x1 convolution + ReLU"
TUNED = f"{COMPILED}, max-autotune"
OTHERS = tuple(f"{OWN}, {backend}" for backend in ("cuda", "triton", "torch"))  # than the one that 'auto' takes
COMPILE, GRAPH, TF32, BF16 = ", torch.compile", ", graph", ", TF32", ", bf16"
DENSE = (LINEAR, DEEP, SLIM)
LOWER = tuple(f"{name}{precision}" for name in DENSE for precision in (TF32, BF16))  # float32 cases on tensor cores


@dataclass(frozen=True)
class Case:
    """A stack of `layers` on rows of `features`.

    groups: as many stacks on as many inputs. inner: each of the N is (features, inner) in memory, tokens of so many
    channels or channels of so many pixels, and is reflected along the features.
    """

    rows: int
    features: int
    layers: int
    dtype: torch.dtype = torch.float32
    groups: int | None = None
    inner: int | None = None

    def __str__(self) -> str:
        groups = "" if self.groups is None else f"G={self.groups}, "
        inner = "" if self.inner is None else f", inner {self.inner}"
        dtype = "" if self.dtype == torch.float32 else f", {self.dtype_name}"
        return f"{groups}N={self.rows}, d={self.features}, L={self.layers}{inner}{dtype}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def elements(self) -> int:
        return self.rows * self.features * (self.groups or 1) * (self.inner or 1)

    @property
    def element_layers(self) -> int:
        return self.elements * self.layers

    @property
    def bits(self) -> int:
        """Bytes of one bit per element and layer."""
        of_row = -(-self.features // 8) if self.inner is None else 4 * -(-self.features // 32)
        return self.elements // self.features * self.layers * of_row

    @property
    def rest(self) -> int:
        """Bytes of the rest of y: one per element, where y is rounded to 16 bits."""
        return self.elements if self.dtype in (torch.bfloat16, torch.float16) else 0

    @property
    def is_short(self) -> bool:
        """Whether a GPU may wait for the launches of its kernels: then it is also timed as a CUDA graph."""
        return self.element_layers <= 2**26

    def bytes_moved(self, direction: str) -> int:
        """Returns the bytes that cannot be avoided: x and y; y, dy, dx and what is kept beside y; both, it twice."""
        tensor, kept = self.elements * self.dtype.itemsize, self.bits + self.rest
        both = 5 * tensor + 2 * kept
        return {"forward": 2 * tensor, "backward": 3 * tensor + kept}.get(direction, both)

    def input(self, grad: bool = True, device: torch.device | None = None) -> Tensor:
        groups = () if self.groups is None else (self.groups,)
        inner = () if self.inner is None else (self.inner,)
        shape = (*groups, self.rows, self.features, *inner)
        return torch.randn(shape, dtype=self.dtype, device=device, requires_grad=grad)

    def rehearsed(self) -> Case:
        """Returns the case at a size for an interpreter."""
        return replace(
            self,
            rows=min(self.rows, 5),
            features=min(self.features, 48),
            layers=min(self.layers, 2),
            groups=self.groups and min(self.groups, 2),
            inner=self.inner and min(self.inner, 3),
        )


@dataclass(frozen=True)
class Group:
    """Cases that belong together, the rivals to measure in them, and for how long each case is measured."""

    name: str
    cases: tuple[Case, ...]
    rivals: tuple[str, ...]
    directions: tuple[str, ...] = ("forward", "backward", "both")
    seconds: float = 1.0

    def rows(self, case: Case, on_gpu: bool) -> list[tuple[str, str]]:
        """Returns what is measured of a case, as (rival, way): a way is a direction, on a GPU also one in a graph."""
        graphs = on_gpu and case.is_short
        copies = [("forward", True), (f"forward{GRAPH}", graphs)] if COPY in self.rivals else []
        ways = [
            way
            for direction in self.directions
            for way in (direction, *([f"{direction}{GRAPH}"] if graphs and direction in ("forward", "both") else []))
        ]
        own = [(rival, way) for way in ways for rival in self.rivals if rival != COPY]
        return [*((COPY, way) for way, wanted in copies if wanted), *own]


def powers(first: int, last: int, step: int = 2) -> list[int]:
    """Returns first, first * step, ... up to last."""
    sizes = []
    while first <= last:
        sizes.append(first)
        first *= step
    return sizes


def cpu_groups(full: bool) -> list[Group]:
    """Returns what is measured on a CPU; the quick suite takes fewer points, and what the compiler makes of fewer."""
    rivals = (OWN, LINEAR, DEEP, EAGER, COMPILED)
    sweep = (*rivals, OTHERS[-1]) if full else (OWN, LINEAR, DEEP)
    one_layer = (COPY, *rivals, HOUSEHOLDER) if full else (COPY, OWN, LINEAR, EAGER, HOUSEHOLDER)
    ways = ("forward", "both")
    seconds, long = (3.0, 6.0) if full else (1.0, 1.5)
    widths = (30, *powers(64, 16384)) if full else (30, *powers(64, 4096, 4))
    batches, depths = powers(1, 65536, 2 if full else 8), powers(1, 512, 2 if full else 4)
    big = Case(4096, 1024, 16)
    pairs = tuple(f"{name}{suffix}" for name in (OWN, LINEAR) for suffix in ("", COMPILE))
    return [
        Group("stack", (big, Case(1024, 128, 20)), (OWN, LINEAR, EAGER, COMPILED), ("both",), 6.0),
        Group("small networks", (Case(100, 30, 20), Case(100, 200, 20), Case(256, 784, 20)), rivals, ways, long),
        Group("one layer", (Case(4096, 256, 1), Case(1024, 1024, 1)), one_layer, ways, seconds),
        Group("depth", tuple(Case(1024, 256, depth) for depth in depths), (*sweep, EAGER), seconds=seconds),
        Group("width", tuple(Case(256, width, 8) for width in widths), sweep, seconds=seconds),
        Group("batch", tuple(Case(rows, 256, 16) for rows in batches), sweep, seconds=seconds),
        Group("storage", (replace(big, dtype=torch.bfloat16), big), (OWN,), ("both",), 2.0),
        Group("groups", (Case(256, 64, 8, groups=8),), (OWN, EAGER), ways),
        Group("tokens", (Case(32, 196, 2, inner=128),), (OWN, TRANSPOSED, LINEAR, POINTWISE, EAGER), ways),
        Group("channels", (Case(64, 256, 4, inner=196),), (OWN, TRANSPOSED, LINEAR, POINTWISE, EAGER), ways),
        Group("training step", (Case(1024, 256, 16),), rivals, ("step",), 2.0),
        Group("torch.compile", (Case(4, 32, 20), Case(1024, 128, 20), big), pairs, ways, long),
    ]


def gpu_groups(full: bool) -> list[Group]:
    """Returns what is measured on a GPU, the most telling first: a short loan of one may end at any row.

    A copy of the input takes its turns in every group, as the yardstick.
    """
    storage = (torch.bfloat16, torch.float32)
    own = (COPY, OWN, *OTHERS[:2])
    rivals = (*own, *DENSE, *LOWER, EAGER, COMPILED, TUNED)
    sweep = (*own, LINEAR, DEEP)
    along = (*own, TRANSPOSED, LINEAR, POINTWISE, EAGER)
    copies = tuple(Case(2**26 // d, d, 1, t) for d in (1024, 4096, 256) for t in storage)
    stacks = tuple(Case(2**25 // d, d, 16, t) for d in (1024, 4096, 256) for t in storage)
    small = (Case(100, 30, 20), Case(100, 200, 20), Case(256, 784, 20), Case(1, 1024, 16, torch.bfloat16))
    widths = (30, *powers(64, 65536, 2 if full else 4))
    depths, batches = powers(1, 64, 2 if full else 4), powers(1, 65536, 2 if full else 8)
    return [
        Group("one layer", copies, own, ("forward", "both")),
        Group("kernels", (Case(65536, 1024, 16, torch.bfloat16), Case(65536, 1024, 16)), own, seconds=1.5),
        Group("small networks", small, rivals, ("both",), 1.5),
        Group("stack", stacks, rivals, ("both",), 3.0),
        Group("training step", (Case(8192, 1024, 16),), rivals, ("step",), 2.0),
        Group("torch.compile", (*small[:1], *stacks[:1]), (*own[:2], f"{OWN}{COMPILE}"), ("forward", "both"), 2.0),
        Group("width", tuple(Case(2**23 // d, d, 16, torch.bfloat16) for d in widths), sweep, seconds=0.7),
        Group("depth", tuple(Case(8192, 1024, n, torch.bfloat16) for n in depths), sweep, seconds=0.7),
        Group("batch", tuple(Case(n, 1024, 16, torch.bfloat16) for n in batches), sweep, seconds=0.7),
        Group("groups", (Case(1024, 256, 16, groups=64),), (*own, EAGER), ("forward", "both")),
        Group("tokens", (Case(256, 196, 2, torch.bfloat16, inner=512),), along, ("forward", "both")),
        Group("channels", (Case(256, 256, 4, torch.bfloat16, inner=196),), along, ("forward", "both")),
    ]


def groups_of(device: str, suite: str, dtype: torch.dtype | None) -> list[Group]:
    """Returns the groups of a suite, in another storage type where one is given; 'rehearsal' is the GPU's, tiny."""
    groups = cpu_groups(suite == "full") if device == "cpu" else gpu_groups(suite == "full")
    changed = []
    for group in groups:
        cases = list(group.cases)
        if dtype is not None:
            cases = [replace(case, dtype=dtype) for case in cases]
        if device == "rehearsal":
            cases = [case.rehearsed() for case in cases[:2]]
        changed.append(replace(group, cases=tuple(dict.fromkeys(cases))))
    return changed
