"""HanNet and FCNet: the multilayer networks of the papers, single or many trained as one."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from hanops.definition.checks import DTYPES
from hanops.models.layers import GroupedLinear, make_activation, make_dense, start_orthogonal, weights
from hanops.modules import HanLayer, HanStack

Sizes = tuple[int, int, int, int]  # in_features, width, depth, out_features


def _checked(name: str, *sizes: int) -> Sizes:
    for argument, value in zip(("in_features", "width", "depth", "out_features"), sizes, strict=True):
        if value < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {value}")
    return sizes  # type: ignore[return-value]


_Net = TypeVar("_Net", bound="Network")


class Network(nn.Module):
    """What HanNet and FCNet share: hidden layers of one width, a dense layer to the output, and groups."""

    def __init__(
        self,
        hidden: list[nn.Module],
        sizes: Sizes,
        groups: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.sizes, self.groups = sizes, groups
        self.hidden = nn.Sequential(*hidden)
        self.out = make_dense(sizes[1], sizes[3], groups, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output, (..., out_features).

        Args:
            x: (..., in_features); with groups, (groups, rows, in_features).
        """
        return self.out(self.hidden(x))

    def _like(self: _Net, groups: int | None) -> _Net:
        """Returns a new network of this architecture, dtype and device."""
        raise NotImplementedError

    @classmethod
    def grouped(cls: type[_Net], models: Sequence[_Net]) -> _Net:
        """Returns one model of the same parameters, whose groups are these models. They train as they would alone.

        Args:
            models: single networks of one architecture.

        Raises:
            ValueError: where there are none, or they differ in their architecture.
        """
        if not models:
            raise ValueError(f"{cls.__name__}.grouped: models must not be empty")
        if any(m.groups is not None or repr(m) != repr(models[0]) for m in models):
            raise ValueError(f"{cls.__name__}.grouped: models must be single networks of one architecture")
        model = models[0]._like(len(models))
        states = [m.state_dict() for m in models]
        model.load_state_dict({key: torch.stack([state[key] for state in states]) for key in states[0]})
        return model

    def single(self: _Net, group: int) -> _Net:
        """Returns a copy of one group, as a network of its own."""
        model = self._like(None)
        model.load_state_dict({key: value[group] for key, value in self.state_dict().items()})
        return model


class HanNet(Network):
    """The papers' network of Han layers: a dense layer in, hidden Han layers, a dense layer out.

    Depth counts hidden layers: the first, which is dense, those named in `dense_layers`, and Han layers for the rest.
    Each ends in the activation. Consecutive Han layers are one `HanStack`.

    Args:
        in_features: size of the input.
        width: size of the hidden layers.
        depth: number of hidden layers.
        out_features: size of the output.
        dense_layers: which hidden layers are dense beside the first, counted from 1. The papers' checkerboard network
            is `HanNet(2, 30, 20, 2, dense_layers=(2, 20))`, 3,032 parameters.
        activation: 'abs'. Others are for ablation, one kernel a layer: 'relu', 'maxmin' or 'groupsort' (runs of 5).
        groups: number of independent networks. The input then has shape (groups, rows, in_features).
        device, dtype: of the parameters.

    Raises:
        ValueError: for sizes below 1, dense layers outside of 2 to depth, an unknown activation, or a width that is no
            multiple of the runs that it sorts.

    Dense weights start orthogonal, u as random unit vectors, biases uniform in ±1/sqrt(size of the input).

    Source: Yu and Zhang, arXiv 2106.04088, Section 4 and the authors' code.

    >>> import torch, hanops.models
    >>> model = hanops.models.HanNet(2, 30, 20, 2, dense_layers=(2, 20))
    >>> sum(p.numel() for p in model.parameters()), model(torch.randn(7, 2)).shape
    (3032, torch.Size([7, 2]))
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        dense_layers: Collection[int] = (),
        activation: str = "abs",
        groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _checked("HanNet", in_features, width, depth, out_features)
        if any(not 2 <= layer <= depth for layer in dense_layers):
            wanted = f"must be within 2 to {depth}, the depth"
            raise ValueError(f"HanNet: dense_layers {wanted}, got {sorted(dense_layers)}")
        hidden: list[nn.Module] = []
        run = 0  # Han layers that are yet to be added
        for layer in range(1, depth + 2):
            if 1 < layer <= depth and layer not in dense_layers:
                run += 1
                continue
            hidden += _han_layers(width, run, activation, groups, device, dtype)
            run = 0
            if layer <= depth:
                size = in_features if layer == 1 else width
                hidden += [make_dense(size, width, groups, device, dtype), make_activation(activation, width)]
        super().__init__(hidden, sizes, groups, device, dtype)
        self.dense_layers, self.activation = tuple(sorted(dense_layers)), activation
        for weight in weights(self):
            start_orthogonal(weight)

    def _like(self, groups: int | None) -> "HanNet":
        weight = self.out.weight
        return HanNet(
            *self.sizes,
            dense_layers=self.dense_layers,
            activation=self.activation,
            groups=groups,
            device=weight.device,
            dtype=weight.dtype,
        )


def _han_layers(
    width: int,
    depth: int,
    activation: str,
    groups: int | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> list[nn.Module]:
    """Returns consecutive Han layers: one stack, or with another activation a reflection and that for each."""
    if depth == 0:
        return []
    if activation == "abs":
        return [HanStack(width, depth, groups=groups, device=device, dtype=dtype)]
    layers: list[nn.Module] = []
    for _ in range(depth):
        reflection = HanLayer(width, groups=groups, final_abs=False, device=device, dtype=dtype)
        layers += [reflection, make_activation(activation, width)]
    return layers


class FCNet(Network):
    """Dense layers with an activation after each but the last.

    Args:
        in_features, width, depth, out_features: as in `HanNet`.
        activation: 'relu', 'abs', 'maxmin' or 'groupsort' (runs of 5).
        groups: number of independent networks, as in `HanNet`.
        device, dtype: of the parameters.

    Raises:
        ValueError: for sizes below 1, an unknown activation, or a width that is no multiple of the runs that it sorts.

    Weights start by `kaiming_normal_`, with the gain of ReLU or, for the others, which keep the second moment of a
    symmetric input, with gain 1. Biases start uniform in ±1/sqrt(size of the input).

    >>> sum(p.numel() for p in FCNet(2, 100, 6, 2).parameters())
    51002
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        activation: str = "relu",
        groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = _checked("FCNet", in_features, width, depth, out_features)
        hidden: list[nn.Module] = []
        for layer in range(depth):
            size = width if layer else in_features
            hidden += [make_dense(size, width, groups, device, dtype), make_activation(activation, width)]
        super().__init__(hidden, sizes, groups, device, dtype)
        self.activation = activation
        with torch.no_grad():
            for weight in weights(self):
                nn.init.kaiming_normal_(weight, nonlinearity="relu" if activation == "relu" else "linear")

    def _like(self, groups: int | None) -> "FCNet":
        weight = self.out.weight
        return FCNet(*self.sizes, activation=self.activation, groups=groups, device=weight.device, dtype=weight.dtype)


def orthogonality_penalty(model: nn.Module) -> Tensor:
    """Returns the sum of |W^T W - I|^2 over the square dense layers of a model; with groups, one for each.

    Args:
        model: with dense layers of any dtype, all of them on one device.

    Returns:
        A scalar, or (groups,), in the dtype of the weights; 0 where no dense layer is square.

    Source: the 'OrthFC' rows of the ablation in arXiv 2106.04088.
    """
    total: Tensor | None = None
    for module in model.modules():
        if isinstance(module, nn.Linear | GroupedLinear) and module.weight.shape[-1] == module.weight.shape[-2]:
            weight = module.weight
            eye = torch.eye(weight.shape[-1], device=weight.device, dtype=weight.dtype)
            penalty = (weight.mT @ weight - eye).square().sum((-1, -2))
            total = penalty if total is None else total + penalty
    return torch.zeros(()) if total is None else total


_KEY = re.compile(r"feature\.(0|[1-9]\d*)\.(vector|weight|bias)|(classif(?:i?er))\.(?:weight|bias)")
_KEYS = "feature.{i}.vector or feature.{i}.weight, feature.{i}.bias, and classifer.weight and .bias, or classifier"


def load_hannet(state_dict: Mapping[str, Tensor]) -> HanNet:
    """Returns the HanNet of a state dict in the authors' layout.

    Args:
        state_dict: `feature.{i}.vector` (width, 1) and `feature.{i}.bias` of Han layers, `feature.{i}.weight` and
            `feature.{i}.bias` of dense ones, and the last layer's `weight` and `bias`, which the authors call
            `classifer` on the checkerboard and `classifier` in regression. Of one dtype.

    Raises:
        ValueError: for keys, shapes or dtypes of another layout.

    Source: the authors' code of arXiv 2106.04088.
    """
    kinds, last = _layout(state_dict)
    _check_tensors(state_dict, kinds, last)
    layers = list(kinds)
    first = state_dict[f"{layers[0]}.weight"]
    model = HanNet(
        first.shape[1],
        first.shape[0],
        len(layers),
        state_dict[f"{last}.weight"].shape[0],
        dense_layers=[layer for layer, name in enumerate(layers, start=1) if kinds[name] == "weight" and layer > 1],
        device=first.device,
        dtype=first.dtype,
    )
    names = iter(layers)
    state = {f"out.{part}": state_dict[f"{last}.{part}"] for part in ("weight", "bias")}
    for position, module in enumerate(model.hidden):
        if isinstance(module, HanStack):
            run = [next(names) for _ in range(module.depth)]
            state[f"hidden.{position}.u"] = torch.stack([state_dict[f"{name}.vector"].flatten() for name in run])
            state[f"hidden.{position}.b"] = torch.stack([state_dict[f"{name}.bias"] for name in run])
        elif isinstance(module, nn.Linear):
            name = next(names)
            state |= {f"hidden.{position}.{part}": state_dict[f"{name}.{part}"] for part in ("weight", "bias")}
    model.load_state_dict(state)
    return model


def _layout(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, str], str]:
    """Returns the kind of each hidden layer by its name, 'vector' or 'weight', in their order, and the last's name."""
    got = f"got {sorted(map(str, state_dict))}"
    found = [_KEY.fullmatch(str(key)) for key in state_dict]
    indices = sorted({int(match[1]) for match in found if match and match[1]})
    lasts = {match[3] for match in found if match and match[3]}
    if None in found or not indices or len(lasts) != 1:
        raise ValueError(f"load_hannet: state_dict must have the keys {_KEYS}, {got}")
    last = lasts.pop()
    kinds = {}
    for name in [f"feature.{index}" for index in indices]:
        own = [kind for kind in ("vector", "weight") if f"{name}.{kind}" in state_dict]
        if len(own) != 1:
            have = " and ".join(own) or "neither"
            raise ValueError(f"load_hannet: {name} must have a vector or a weight, got {have} of them in state_dict")
        kinds[name] = own[0]
    for key in (*(f"{name}.bias" for name in kinds), f"{last}.weight", f"{last}.bias"):
        if key not in state_dict:
            raise ValueError(f"load_hannet: state_dict must have {key}, {got}")
    name, kind = next(iter(kinds.items()))
    if kind != "weight":
        raise ValueError(f"load_hannet: the first hidden layer must be dense, got {name}.vector")
    return kinds, last


def _check_tensors(state_dict: Mapping[str, Tensor], kinds: Mapping[str, str], last: str) -> None:
    """Checks the type, the dtype and the shape of each tensor of a layout."""
    first = next(iter(kinds)) + ".weight"
    dtype = getattr(state_dict[first], "dtype", None)
    for key, value in state_dict.items():
        if not isinstance(value, Tensor) or value.dtype not in DTYPES or value.dtype != dtype:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            wanted = "tensors of one dtype: float64, float32, bfloat16 or float16"
            raise ValueError(f"load_hannet: state_dict must have {wanted}; {key} is {got}, {first} is {dtype}")
    if state_dict[first].dim() != 2:
        raise ValueError(f"load_hannet: {first} must have 2 axes, got shape {list(state_dict[first].shape)}")
    width = state_dict[first].shape[0]
    for name in (*kinds, last):
        out = width if name in kinds else len(state_dict[f"{name}.bias"].flatten())
        wanted_shapes: dict[str, list[list[int]]] = {f"{name}.bias": [[out]]}
        if kinds.get(name) == "vector":
            wanted_shapes[f"{name}.vector"] = [[width, 1], [width]]
        elif f"{name}.weight" != first:
            wanted_shapes[f"{name}.weight"] = [[out, width]]
        for key, shapes in wanted_shapes.items():
            if list(state_dict[key].shape) not in shapes:
                raise ValueError(f"load_hannet: {key} must have shape {shapes[0]}, got {list(state_dict[key].shape)}")
