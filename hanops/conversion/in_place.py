"""What a model changes in place after one of its layers: activations and dropouts with `inplace=True`, made to copy."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hanops import _torch

# What may hand on its input, or a view of it, so that what comes next changes it too.
_HANDING_ON = (nn.Identity, nn.Flatten, nn.Unflatten, _torch.Dropout)


def copy_after(model: nn.Module, names: list[str]) -> list[str]:
    """Sets `inplace=False` on the modules that may change the output of the last of `names`, in one parent.

    In a plain `nn.Sequential`, that is the module which comes next. The order of calls in any other parent cannot be
    seen: there it is every child of the parent that works in place, and the child registered next. Where nothing but
    dropouts and views comes after a layer, what follows the parent is looked at in the same way.

    Args:
        model: holds the layers.
        names: paths of the modules that a layer is under, one for each place where the model holds it.

    Returns:
        The paths of the modules that were set.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = dict.fromkeys(path for name in names for path in _following(modules, name))
    changed = []
    for path in found:
        if getattr(modules[path], "inplace", False) is True:
            modules[path].inplace = False  # type: ignore[assignment]
            changed.append(path)
    return changed


def _following(modules: dict[str, nn.Module], name: str) -> Iterator[str]:
    """Yields the paths of modules that may be called on the output of a module, or on a view of it."""
    while name:
        path, _, key = name.rpartition(".")
        parent = modules[path]
        prefix = f"{path}." if path else ""
        keys = list(parent._modules)
        if not is_plain(parent):
            yield from (prefix + other for other in keys if other != key and prefix + other in modules)
        for other in keys[keys.index(key) + 1 :]:
            if prefix + other not in modules:  # a child that is None
                continue
            yield from _first(modules, prefix + other)
            if not isinstance(modules[prefix + other], _HANDING_ON):
                return
        name = path


def _first(modules: dict[str, nn.Module], path: str) -> Iterator[str]:
    """Yields the paths of a module, and of those in it that may be called on its input."""
    yield path
    module = modules[path]
    for key, child in module._modules.items():
        if child is None:
            continue
        yield from _first(modules, f"{path}.{key}") if is_plain(module) else [f"{path}.{key}"]
        if is_plain(module) and not isinstance(child, _HANDING_ON):
            return


def is_plain(module: nn.Module) -> bool:
    """Tells a container whose children are called in their order."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
