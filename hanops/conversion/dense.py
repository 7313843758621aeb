"""Existing models: their square nn.Linear, with the activations that follow, replaced by Han layers in place."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from hanops import _torch
from hanops.conversion.in_place import copy_after, is_plain
from hanops.definition.checks import DTYPES
from hanops.models.layers import HIDDEN_ACTIVATIONS, Abs
from hanops.modules import HanStack, _check_count
from hanops.selection import choose, kinds, pattern

_NOT_SQUARE = "not square"
_UNSEEN = "no activation to replace follows in an nn.Sequential"


@dataclass(frozen=True)
class Row:
    """What became of one dense layer.

    Attributes:
        name: the layer's, as in `model.named_modules()`.
        was: the layer, and the activation that was replaced with it.
        now: what took its place, or why it was left.
        converted: whether it was replaced.
        before: its parameters.
        after: those of what took its place.
        notes: which modules after it no longer work in place, for its output is kept for the backward.
    """

    name: str
    was: str
    now: str
    converted: bool
    before: int
    after: int
    notes: str = ""


@dataclass(frozen=True)
class Conversion:
    """What `convert` did to each dense layer. `print` shows it as a table.

    Attributes:
        rows: one for each dense layer of the model.
        before: parameters of the whole model.
        after: those it has now.
    """

    rows: tuple[Row, ...]
    before: int
    after: int

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [("layer", "was", "parameters", "now", "parameters", "notes")]
        for row in self.rows:
            now = row.now if row.converted else f"left: {row.now}"
            cells.append((row.name, row.was, f"{row.before:,}", now, f"{row.after:,}", row.notes))
        cells.append(("whole model", "", f"{self.before:,}", "", f"{self.after:,}", ""))
        if not any(row.notes for row in self.rows):
            cells = [row[:-1] for row in cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<><><", widths, strict=False))
        return "\n".join(line.format(*row).rstrip() for row in cells)


def convert(
    model: nn.Module,
    depth: int = 3,
    *,
    where: str | Collection[str] | Callable[[str, nn.Module], bool] | None = None,
    sandwich: int | None = None,
    verbose: bool = True,
) -> Conversion:
    """Replaces square `nn.Linear` and the activations that follow by Han layers, in place, and prints what it did.

    A Linear and an activation after it in an `nn.Sequential` become a `HanStack`, whose absolute value is the
    activation, and an `nn.Identity`, so that every other module keeps its name. Pairs that
    follow one another become one stack, one kernel, in the place of the first Linear. Other Linears are left, unless
    `where` chooses them: then they become a `HanStack` with `final_abs=False`, which keeps signs as they do, and what
    follows them stays: an activation that the model's forward calls, a norm, a sigmoid, or nothing.

    A Han layer keeps its output for the backward, so nothing may change it in place: `inplace=False` is set on the
    activations and dropouts that may follow, and the report names them.

    Han layers start anew: train the model afterwards, and make the optimizer afterwards, for the parameters are others.
    Dtype, device, training mode, `requires_grad` and `bias=False` are those of the Linear. Left alone, with the reason
    in the report: Linears that are shared or tied, parametrized, of a subclass, with hooks, part of another dense layer
    as in peft's adapters, or in `nn.MultiheadAttention`. A model that reads the `weight` of a Linear instead of calling
    it raises an AttributeError when it runs; `nn.TransformerEncoderLayer`, whose fast path in evaluation does so, runs
    without that path.

    Args:
        model: holds the Linears.
        depth: Han layers for each of them; 3 where the paper has them fit what one dense layer computes.
        where: which Linears: a predicate of name and module, or names and patterns such as "blocks.*.fc1", whose `*`
            also stands for dots. None: the square ones that an activation to replace follows in an `nn.Sequential`:
            ReLU, ReLU6, LeakyReLU, RReLU, ELU, SELU, CELU, GELU, SiLU, Mish, Softplus, Hardswish, or of `hanops.models`
            Abs or GroupSort.
        sandwich: width of the Han layers for those Linears of `where` that are not square. Such a Linear becomes a
            Linear to this width, an absolute value, a `HanStack` and a Linear to its own width, as in
            `hanops.models.HanHead`; what follows it stays. None leaves such Linears.
        verbose: False prints nothing.

    Returns:
        What became of each dense layer, and the parameters before and after.

    Raises:
        TypeError: for arguments of a wrong type.
        ValueError: for depth or sandwich below 1, a sandwich without where, a name in where that no Linear has, a model
            that is itself a Linear, or where no Linear can be converted. The model is then as it was.

    Source: Yu and Zhang, arXiv 2106.04088: Han layers for dense layers, and the head with 3 Han layers of width 30.

    >>> import hanops
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    >>> report = hanops.convert(model)
    layer        was                   parameters  now                    parameters
    0            Linear(2, 64)                192  left: not square              192
    2            Linear(64, 64), ReLU       4,160  HanStack(64, depth=3)         384
    4            Linear(64, 1)                 65  left: not square               65
    whole model                             4,417                                641
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be an nn.Module, got {model!r}")
    _check_count("convert", "depth", depth, 1)
    if sandwich is not None:
        _check_count("convert", "sandwich", sandwich, 1)
        if where is None:
            raise ValueError(f"convert: sandwich={sandwich} needs where, to say which Linears it is for")
    if isinstance(model, nn.Linear):
        raise ValueError(f"convert: model must hold the Linears, got {model}, which can only be replaced in its holder")
    layers = list(_dense_layers(model))
    if not layers:
        raise ValueError(f"convert: model must hold an nn.Linear, got none in {type(model).__name__}")
    modules = {layer.name: layer.module for layer in layers}
    chosen = choose("convert: where", where, modules) if where is not None else None

    left = _obstacles(model, layers)
    runs: list[list[_Dense]] = []  # the layers of a run become one module
    for layer in layers:
        if chosen is not None and layer.name not in chosen:
            left[layer.name] = "where does not choose it"
        elif layer.name in left:
            continue
        elif not layer.square and sandwich is None:
            left[layer.name] = _NOT_SQUARE
        elif chosen is None and layer.activation is None:
            left[layer.name] = _UNSEEN
        elif runs and _continues(runs[-1][-1], layer):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    if not runs:
        raise ValueError(_nothing_to_convert(layers, left))

    before = _count(model)
    made = [_make(run, depth, sandwich) for run in runs]  # all of them first, so that an error leaves the model whole
    rows = {row.name: row for run, new in zip(runs, made, strict=True) for row in _put(run, new)}
    for run, new in zip(runs, made, strict=True):
        if isinstance(new, HanStack) and (copying := copy_after(model, _places(model, run[-1]))):
            first = run[0].name
            rows[first] = replace(rows[first], notes=f"no longer in place: {kinds(copying)}")
    for layer in layers:
        if layer.name in left:
            size = _count(layer.module)
            rows[layer.name] = Row(layer.name, str(layer), left[layer.name], False, size, size)
    _turn_off_fast_path(model, [layer.parent for run in runs for layer in run])
    report = Conversion(tuple(rows[layer.name] for layer in layers), before, _count(model))
    if verbose:
        print(report)
    return report


@dataclass(frozen=True)
class _Dense:
    """A dense layer, and where it is held."""

    name: str
    module: nn.Linear
    parent: nn.Module
    key: str
    previous: str | None  # key of what an nn.Sequential calls before it
    following: str | None  # key of what it calls after it

    def __str__(self) -> str:
        return f"{type(self.module).__name__}({self.module.in_features}, {self.module.out_features})"

    @property
    def square(self) -> bool:
        return self.module.in_features == self.module.out_features

    @property
    def activation(self) -> nn.Module | None:
        """The activation that follows a square layer: its absolute value will take the place of it."""
        module = self.parent._modules[self.following] if self.following is not None else None
        return module if self.square and type(module) in HIDDEN_ACTIVATIONS and not _has_hooks(module) else None


def _is_dense(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Tells an nn.Linear, and what is like one, which the report names too: the quantized ones of torch."""
    like = "Linear" in type(module).__name__ and hasattr(module, "in_features") and hasattr(module, "out_features")
    return isinstance(module, nn.Linear) or like


def _dense_layers(model: nn.Module) -> Iterator[_Dense]:
    for path, parent in model.named_modules():
        for key, module in parent._modules.items():
            if _is_dense(module):
                yield _Dense(f"{path}.{key}" if path else key, module, parent, key, *_neighbours(parent, key))


def _neighbours(parent: nn.Module, key: str) -> tuple[str | None, str | None]:
    """Returns the keys of what is called before and after a child, where the order can be seen."""
    if not is_plain(parent):
        return None, None
    keys = [None, *parent._modules, None]
    position = keys.index(key)
    return keys[position - 1], keys[position + 1]


def _has_hooks(module: object) -> bool:
    own = vars(module)
    return "forward" in own or any(hooks for name, hooks in own.items() if name.endswith("_hooks"))


def _obstacles(model: nn.Module, layers: list[_Dense]) -> dict[str, str]:
    """Returns by name why layers cannot be converted, of those that cannot."""
    holders: dict[int, list[str]] = defaultdict(list)  # names of each dense layer and each parameter, by id
    for layer in layers:
        holders[id(layer.module)].append(layer.name)
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders[id(parameter)].append(f"{path}.{key}" if path else key)
    found = {layer.name: _part_of_another(model, layer) or _obstacle(layer, holders) for layer in layers}
    return {name: reason for name, reason in found.items() if reason is not None}


def _part_of_another(model: nn.Module, layer: _Dense) -> str | None:
    """Tells a Linear inside a dense layer of another package, such as the base layer and the adapters of peft."""
    holder = model
    for key in [*layer.name.split("."), ""]:
        own = any(base.__name__ == "BaseTunerLayer" for base in type(holder).__mro__)  # peft's, of any kind
        if holder is not layer.module and (own or _is_dense(holder)):
            return f"part of a {type(holder).__module__}.{type(holder).__name__}"
        if holder is layer.module:
            return None
        holder = getattr(holder, key)
    return None


def _nothing_to_convert(layers: list[_Dense], left: dict[str, str]) -> str:
    """Returns what to say where no layer can be converted: how many, of which kinds, why, and what helps."""
    groups = Counter((pattern(layer.name), str(layer), left[layer.name]) for layer in layers).most_common()
    lines = [f"convert: model must hold a Linear that can be converted, got none of {len(layers)}:"]
    for (name, was, reason), count in groups[:5]:
        lines.append(f"  {name}, {was}{'' if count == 1 else f', {count} of them'}: {reason}")
    if rest := sum(count for _, count in groups[5:]):
        lines.append(f"  and {rest} more")
    names = {reason: name for (name, _, reason), _ in reversed(groups)}  # of each reason the most frequent
    if _UNSEEN in names:
        lines.append(f'where="{names[_UNSEEN]}" chooses Linears wherever the model calls them; its activations stay.')
    if _NOT_SQUARE in names:
        lines.append(f'where="{names[_NOT_SQUARE]}", sandwich=30 is for those not square: Linear, Han layers, Linear.')
    return "\n".join(lines)


def _places(model: nn.Module, layer: _Dense) -> list[str]:
    """Returns the paths at which the model holds a layer: its parent may be shared."""
    holders = [path for path, module in model.named_modules(remove_duplicate=False) if module is layer.parent]
    return [f"{path}.{layer.key}" if path else layer.key for path in holders]


def _obstacle(layer: _Dense, holders: dict[int, list[str]]) -> str | None:
    module = layer.module
    parts = {**module._parameters, **module._buffers, **module._modules}
    if isinstance(layer.parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads its weight"
    if parametrize.is_parametrized(module):
        return "parametrized"
    if type(module) is not nn.Linear:
        return f"of class {type(module).__module__}.{type(module).__name__}"
    if parts.keys() != {"weight", "bias"}:
        return f"holds {', '.join(parts)}"
    for part in (module, *module.parameters()):
        if len(names := holders[id(part)]) > 1:
            return f"shared: {', '.join(names)}"
    if type(module.weight) is not nn.Parameter:
        return f"its weight is a {type(module.weight).__name__}"
    if module.weight.dtype not in DTYPES:
        return f"dtype {module.weight.dtype}"
    if _has_hooks(module) or any(_torch.has_hooks(p) for p in module.parameters()):
        return "has hooks, or a forward of its own"
    if module.in_features == 0 or module.out_features == 0:
        return "no features"
    return None


def _continues(previous: _Dense, layer: _Dense) -> bool:
    """Tells whether a layer follows a square one and its activation, and is of the same kind."""
    return (
        layer.parent is previous.parent
        and previous.activation is not None
        and layer.previous == previous.following
        and _kind(layer.module) == _kind(previous.module)
    )


def _kind(linear: nn.Linear) -> tuple[object, ...]:
    weight, bias = linear.weight, linear.bias
    trains = (weight.requires_grad, None if bias is None else bias.requires_grad, linear.training)
    return linear.in_features, linear.out_features, weight.device, weight.dtype, *trains


def _make(run: list[_Dense], depth: int, sandwich: int | None) -> nn.Module:
    linear, bias = run[0].module, run[0].module.bias is not None
    place: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    new: nn.Module
    if run[0].square or sandwich is None:
        final_abs = run[-1].activation is not None
        new = HanStack(linear.in_features, depth * len(run), bias=bias, final_abs=final_abs, **place)
    else:
        new = nn.Sequential(
            nn.Linear(linear.in_features, sandwich, bias, **place),
            Abs(),
            HanStack(sandwich, depth, bias=bias, **place),
            nn.Linear(sandwich, linear.out_features, bias, **place),
        )
    for name, parameter in new.named_parameters():
        of = linear.bias if name.endswith(("b", "bias")) else linear.weight
        parameter.requires_grad_(of.requires_grad)
    return new.train(linear.training)


def _put(run: list[_Dense], new: nn.Module) -> Iterator[Row]:
    """Puts the new module in the place of a run's first layer, nn.Identity in that of the others and activations."""
    for layer in run:
        first, activation = layer is run[0], layer.activation
        now = _describe(new) if first else f"in the stack of {run[0].name}"
        was = str(layer) if activation is None else f"{layer}, {type(activation).__name__}"
        layer.parent.add_module(layer.key, new if first else nn.Identity().train(layer.module.training))
        if activation is not None and layer.following is not None:
            layer.parent.add_module(layer.following, nn.Identity().train(activation.training))
        yield Row(layer.name, was, now, True, _count(layer.module), _count(new) if first else 0)


def _describe(module: nn.Module) -> str:
    if isinstance(module, nn.Sequential):
        return ", ".join(_describe(part) for part in module)
    if isinstance(module, HanStack):
        return f"HanStack({module.features}, depth={module.depth}{'' if module.final_abs else ', final_abs=False'})"
    if isinstance(module, nn.Linear):
        return f"Linear({module.in_features}, {module.out_features})"
    return type(module).__name__


def _turn_off_fast_path(model: nn.Module, holders: list[nn.Module]) -> None:
    """Lets converted nn.TransformerEncoderLayer run without the path that reads the weights of their Linears."""
    layers = {holder for holder in holders if isinstance(holder, nn.TransformerEncoderLayer)}
    for layer in layers:
        layer.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and layers.intersection(module.layers):
            module.use_nested_tensor = False


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_lazy(parameter))
