"""Optimizer groups: every parameter once, reflectors without decay, and what decay would do to them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import hanops


def names(model, group):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


def network():
    return nn.Sequential(nn.Linear(8, 8), hanops.HanStack(8, 3), nn.LayerNorm(8), hanops.HanStack(8, 2, groups=4))


def test_every_trained_parameter_is_in_one_group():
    model = nn.Module()
    model.net = nn.Sequential(nn.Linear(8, 8), hanops.HanStack(8, 3), hanops.HanLayer(8), nn.LayerNorm(8))
    model.grouped = hanops.HanStack(8, 2, groups=4, bias=False)
    model.again = model.net[1]
    model.net[0].bias.requires_grad_(False)
    model.grouped.tied = model.net[2].u
    free, decayed = hanops.param_groups_weight_decay(model, 0.1)
    assert names(model, free) == ["net.1.u", "net.1.b", "net.2.u", "net.2.b", "net.3.weight", "net.3.bias", "grouped.u"]
    assert names(model, decayed) == ["net.0.weight"]
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    torch.optim.AdamW([free, decayed], weight_decay=0.5)


def test_the_output_does_not_depend_on_the_scale_of_u():
    stack = hanops.HanStack(16, 5, dtype=torch.float64)
    x = torch.randn(7, 16, dtype=torch.float64)
    y = stack(x)
    with torch.no_grad():
        stack.u *= torch.tensor([1e-3, 0.1, 3.0, 50.0, 1e3], dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(stack(x), y, rtol=1e-12, atol=1e-12)


def test_decay_only_shrinks_u():
    """A step of SGD makes |u|^2 to (1 - rate decay)^2 |u|^2 + rate^2 |gradient|^2; the groups drop the decay."""
    rate, decay = 0.1, 0.5
    for grouped in (False, True):
        torch.manual_seed(0)
        stack = hanops.HanStack(16, 5, dtype=torch.float64)
        groups = hanops.param_groups_weight_decay(stack, decay) if grouped else stack.parameters()
        optimizer = torch.optim.SGD(groups, lr=rate, weight_decay=decay)
        x, target = torch.randn(2, 64, 16, dtype=torch.float64)
        norms = [stack.u.detach().norm(dim=-1)]
        for _ in range(20):
            optimizer.zero_grad()
            (stack(x) - target).square().mean().backward()
            step = (rate * stack.u.grad).norm(dim=-1)
            optimizer.step()
            norms.append(stack.u.detach().norm(dim=-1))
            kept = 1 if grouped else 1 - rate * decay
            torch.testing.assert_close(norms[-1].square(), (kept * norms[-2]).square() + step.square())
        assert (norms[-1] >= norms[0]).all() if grouped else (norms[-1] < 0.5 * norms[0]).all()


def test_timms_groups_without_han_layers():
    model = network()
    free, decayed = hanops.param_groups_weight_decay(model, 0.1)
    assert names(model, free) == ["0.bias", "1.u", "1.b", "2.weight", "2.bias", "3.u", "3.b"]
    assert (names(model, decayed), free["weight_decay"], decayed["weight_decay"]) == (["0.weight"], 0.0, 0.1)
    model[0].weight.requires_grad_(False)
    (free,) = hanops.param_groups_weight_decay(model, 0.1)
    assert len(free["params"]) == 7
    plain = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    _, decayed = hanops.param_groups_weight_decay(
        plain, 0.1, weight_decay_exclude_1d=False, no_weight_decay_list=["1.*"]
    )
    assert names(plain, decayed) == ["0.weight", "0.bias"]
    (all_of_them,) = hanops.param_groups_weight_decay(plain, 0)
    assert (len(all_of_them["params"]), all_of_them["weight_decay"]) == (4, 0.0)


def test_parametrized_reflectors_do_not_decay():
    model = network()
    parametrizations.weight_norm(model[1], "u")
    parametrizations.spectral_norm(model[1], "b")
    originals = ["1.parametrizations.u.original0", "1.parametrizations.u.original1"]
    free, decayed = hanops.param_groups_weight_decay(model, 0.1)
    assert {*originals, "1.parametrizations.b.original"} <= set(names(model, free))
    assert names(model, decayed) == ["0.weight"]


def test_errors():
    model = hanops.HanStack(8, 3)
    with pytest.raises(ValueError, match="param_groups_weight_decay: weight_decay must be at least 0, got -1"):
        hanops.param_groups_weight_decay(model, -1)
    with pytest.raises(TypeError, match=r"param_groups_weight_decay: weight_decay must be a number, got '0\.1'"):
        hanops.param_groups_weight_decay(model, "0.1")
    with pytest.raises(TypeError, match=r"param_groups_weight_decay: model must be an nn\.Module"):
        hanops.param_groups_weight_decay(model.parameters())
    with pytest.raises(TypeError, match="no_weight_decay_list must be names or patterns, got 'u'"):
        hanops.param_groups_weight_decay(model, 0.1, no_weight_decay_list="u")
