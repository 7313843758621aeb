"""HanNet and FCNet: the multilayer networks of the papers, single or many trained as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from hanops.models.layers import GroupedLinear, make_activation, make_dense, weights
from hanops.modules import HanLayer, HanStack

Sizes = tuple[int, int, int, int]  # in_features, width, depth, out_features


def _checked(name: str, *sizes: int) -> Sizes:
    for argument, value in zip(("in_features", "width", "depth", "out_features"), sizes, strict=True):
        if value < 1:
            raise ValueError(f"{name}: {argument} must be at least 1, got {value}")
    return sizes  # type: ignore[return-value]


_Net = TypeVar("_Net", bound="Network")


class Network(nn.Module):
    """Hidden layers of one width, and a dense layer to the output."""

    out: nn.Linear | GroupedLinear

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
    """Dense in, hidden Han layers, dense out.

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
        ValueError: for sizes below 1, dense layers outside of 2 to depth, or an unknown activation.

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
                hidden += [make_dense(size, width, groups, device, dtype), make_activation(activation)]
        super().__init__(hidden, sizes, groups, device, dtype)
        self.dense_layers, self.activation = tuple(sorted(dense_layers)), activation
        with torch.no_grad():
            for weight in weights(self):
                nn.init.orthogonal_(weight)

    def _like(self, groups: int | None) -> HanNet:
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
        layers += [reflection, make_activation(activation)]
    return layers


class FCNet(Network):
    """Dense layers with an activation after each but the last.

    Args:
        in_features, width, depth, out_features: as in `HanNet`.
        activation: 'relu', 'abs', 'maxmin' or 'groupsort' (runs of 5).
        groups: number of independent networks, as in `HanNet`.
        device, dtype: of the parameters.

    Raises:
        ValueError: for sizes below 1, or an unknown activation.

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
            hidden += [make_dense(size, width, groups, device, dtype), make_activation(activation)]
        super().__init__(hidden, sizes, groups, device, dtype)
        self.activation = activation
        with torch.no_grad():
            for weight in weights(self):
                nn.init.kaiming_normal_(weight, nonlinearity="relu" if activation == "relu" else "linear")

    def _like(self, groups: int | None) -> FCNet:
        weight = self.out.weight
        return FCNet(*self.sizes, activation=self.activation, groups=groups, device=weight.device, dtype=weight.dtype)


def orthogonality_penalty(model: nn.Module) -> Tensor:
    """Returns the sum of |W^T W - I|^2 over the square dense layers of a model; with groups, one for each.

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


def load_hannet(state_dict: Mapping[str, Tensor]) -> HanNet:
    """Returns the HanNet of a state dict in the authors' layout.

    Args:
        state_dict: `feature.{i}.vector` (width, 1) and `feature.{i}.bias` of Han layers, `feature.{i}.weight` and
            `feature.{i}.bias` of dense ones, `classifer.weight` and `classifer.bias` (the authors' spelling).

    Raises:
        ValueError: for keys or shapes of another layout.

    Source: the authors' code of arXiv 2106.04088.
    """
    features = [key.split(".") for key in state_dict if key.startswith("feature.")]
    unknown = [
        key
        for key in state_dict
        if key not in ("classifer.weight", "classifer.bias")
        and not (key.startswith("feature.") and key.split(".")[2:] in (["vector"], ["weight"], ["bias"]))
    ]
    indices = sorted({int(index) for _, index, *_ in features})
    if unknown or not indices or "classifer.weight" not in state_dict:
        wanted = "feature.{i}.vector, feature.{i}.weight, feature.{i}.bias, classifer.weight and classifer.bias"
        raise ValueError(f"load_hannet: state_dict must have the keys {wanted}, got {sorted(state_dict)}")
    kinds = ["vector" if f"feature.{i}.vector" in state_dict else "weight" for i in indices]
    if kinds[0] != "weight":
        raise ValueError("load_hannet: the first hidden layer must be dense, got feature." + f"{indices[0]}.vector")
    first, last = state_dict[f"feature.{indices[0]}.weight"], state_dict["classifer.weight"]
    model = HanNet(
        first.shape[1],
        first.shape[0],
        len(indices),
        last.shape[0],
        dense_layers=[layer for layer, kind in enumerate(kinds, start=1) if kind == "weight" and layer > 1],
        device=first.device,
        dtype=first.dtype,
    )
    layers = iter(zip(indices, kinds, strict=True))
    state: dict[str, Tensor] = {"out.weight": last, "out.bias": state_dict["classifer.bias"]}
    for position, module in enumerate(model.hidden):
        if isinstance(module, HanStack):
            run = [f"feature.{next(layers)[0]}" for _ in range(module.depth)]
            state[f"hidden.{position}.u"] = torch.stack([state_dict[f"{name}.vector"].flatten() for name in run])
            state[f"hidden.{position}.b"] = torch.stack([state_dict[f"{name}.bias"] for name in run])
        elif isinstance(module, nn.Linear):
            name = f"feature.{next(layers)[0]}"
            state[f"hidden.{position}.weight"] = state_dict[f"{name}.weight"]
            state[f"hidden.{position}.bias"] = state_dict[f"{name}.bias"]
    model.load_state_dict(state)
    return model
