"""What the papers' networks are made of beside Han layers: dense layers in groups, and activations."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hanops.modules import SelfDrawn


class GroupedLinear(SelfDrawn):
    """`groups` dense layers, each on its own rows: what `torch.bmm` is to `mm`.

    Args:
        in_features, out_features: as in `nn.Linear`.
        groups: number of layers. The input has shape (groups, rows, in_features).
        device, dtype: of the parameters.

    Attributes:
        weight: (groups, out_features, in_features).
        bias: (groups, out_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(groups, out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def _draw(self, name: str, parameter: Tensor) -> None:
        """Draws weight or bias uniformly from ±1/sqrt(in_features), as `nn.Linear` does."""
        if name in ("weight", "bias"):
            bound = 1 / math.sqrt(self.weight.shape[-1])
            parameter.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W^T + b of each group, (groups, rows, out_features)."""
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)

    def extra_repr(self) -> str:
        """Returns the sizes."""
        groups, out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, groups={groups}"


def make_dense(
    in_features: int,
    out_features: int,
    groups: int | None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Linear | GroupedLinear:
    """Returns a dense layer, or one for each group."""
    if groups is None:
        return nn.Linear(in_features, out_features, device=device, dtype=dtype)
    return GroupedLinear(in_features, out_features, groups, device=device, dtype=dtype)


class Abs(nn.Module):
    """The absolute value."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns |x|."""
        return x.abs()


class GroupSort(nn.Module):
    """Sorts each run of `size` features. With size 2 it is MaxMin.

    Source: Anil, Lucas and Grosse, Sorting Out Lipschitz Function Approximation, arXiv 1811.05381.

    >>> GroupSort(2)(torch.tensor([3.0, 1.0, 2.0, 5.0]))
    tensor([1., 3., 2., 5.])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Returns x sorted within its runs, of the shape of x."""
        return x.unflatten(-1, (-1, self.size)).sort(dim=-1).values.flatten(-2)

    def extra_repr(self) -> str:
        """Returns the size of a run."""
        return str(self.size)


@torch.no_grad()
def start_orthogonal(weight: Tensor) -> None:
    """Draws a weight by `nn.init.orthogonal_`; a half one is drawn in float32 and rounded, as torch has no QR of it."""
    wide = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    nn.init.orthogonal_(wide)  # transformers replaces it by a function without result, where it loads all of a model
    weight.copy_(wide)


def weights(model: nn.Module) -> Iterator[Tensor]:
    """Yields the weight of every dense layer of a model, (out_features, in_features), also those of groups."""
    for module in model.modules():
        if isinstance(module, nn.Linear | GroupedLinear):
            yield from module.weight.unsqueeze(0).flatten(0, -3)


# Those of hidden layers, without parameters: an absolute value may take their place.
HIDDEN_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Hardswish, Abs, GroupSort),
)
SIZES = {"maxmin": 2, "groupsort": 5}  # of the runs that are sorted
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "abs": Abs,
    "relu": nn.ReLU,
    "maxmin": lambda: GroupSort(SIZES["maxmin"]),
    "groupsort": lambda: GroupSort(SIZES["groupsort"]),
}


def make_activation(name: str, width: int) -> nn.Module:
    """Returns the activation of a name, for layers of a width.

    Raises:
        ValueError: for an unknown name, or a width that is no multiple of the runs that it sorts.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    if width % SIZES.get(name, 1):
        raise ValueError(f"width must be a multiple of {SIZES[name]}, the runs that {name!r} sorts, got {width}")
    return ACTIVATIONS[name]()
