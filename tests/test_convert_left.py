"""What conversion leaves as it was, and why: layers that cannot be replaced, models with errors, in-place work."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import hanops

from .test_convert import Mlp, converted, count, mlp, reasons


class LoraLinear(nn.Linear):
    pass


def hooked():
    linear = nn.Linear(8, 8)
    linear.register_forward_hook(lambda module, x, y: y)
    return linear


def hooked_weight():
    linear = nn.Linear(8, 8)
    linear.weight.register_hook(lambda grad: grad)
    return linear


def hooked_gradient():
    linear = nn.Linear(8, 8)
    linear.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    return linear


def patched():
    linear = nn.Linear(8, 8)
    linear.forward = lambda x: x
    return linear


def adapted():
    linear = nn.Linear(8, 8)
    linear.lora_a = nn.Parameter(torch.zeros(8, 1))
    return linear


def quantized():
    linear = nn.Linear(8, 8)
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return torch.ao.nn.quantized.dynamic.Linear.from_float(linear)


def with_subclass_of_tensor():
    class Marked(torch.Tensor):
        pass

    linear = nn.Linear(8, 8)
    linear.weight = nn.Parameter(torch.zeros(8, 8).as_subclass(Marked))
    return linear


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: parametrizations.orthogonal(nn.Linear(8, 8)), "parametrized"),
        (lambda: prune.random_unstructured(nn.Linear(8, 8), "weight", 0.5), "holds bias, weight_orig, weight_mask"),
        (lambda: LoraLinear(8, 8), f"of class {__name__}.LoraLinear"),
        (lambda: nn.LazyLinear(8), "of class torch.nn.modules.linear.LazyLinear"),
        (quantized, "of class torch.ao.nn.quantized.dynamic.modules.linear.Linear"),
        (hooked, "has hooks, or a forward of its own"),
        (hooked_weight, "has hooks, or a forward of its own"),
        (hooked_gradient, "has hooks, or a forward of its own"),
        (patched, "has hooks, or a forward of its own"),
        (adapted, "holds weight, bias, lora_a"),
        (with_subclass_of_tensor, "its weight is a Marked"),
        (lambda: nn.Linear(8, 8, dtype=torch.complex64), "dtype torch.complex64"),
        (lambda: nn.Linear(0, 0), "no features"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:torch.quantize_per_tensor")
def test_layers_that_cannot_be_replaced(make, reason):
    linear = make()
    model = nn.Sequential(linear, nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    report = hanops.convert(model, where="*", verbose=False)
    assert reasons(report) == {"0": reason}
    assert model[0] is linear
    assert isinstance(model[1], nn.ReLU)
    assert isinstance(model[2], hanops.HanStack)


def test_hooks_of_an_activation_keep_it():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    model[1].register_forward_hook(lambda module, x, y: y)
    report = hanops.convert(model, verbose=False)
    assert reasons(report) == {"0": "no activation to replace follows in an nn.Sequential"}


def test_shared_and_tied_layers():
    linear, relu = nn.Linear(8, 8), nn.ReLU()
    model = nn.Module()
    model.embed = nn.Embedding(8, 8)
    model.body = nn.Sequential(linear, relu, linear, relu, nn.Linear(8, 8), relu)
    model.head = nn.Sequential(nn.Linear(8, 8), relu)
    model.head[0].weight = model.embed.weight
    report = hanops.convert(model, verbose=False)
    assert reasons(report) == {
        "body.0": "shared: body.0, body.2",
        "body.2": "shared: body.0, body.2",
        "head.0": "shared: embed.weight, head.0.weight",
    }
    assert list(converted(report)) == ["body.4"]
    assert model.body[0] is model.body[2] is linear
    assert model.body[1] is relu  # the activation is shared, its places are not
    assert report.after == count(model) == report.before - 72 + 48


def test_a_shared_block_is_converted_once_for_all_its_places():
    block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.Sequential(block, block)
    report = hanops.convert(model, verbose=False)
    assert converted(report) == {"0.0": "HanStack(8, depth=3)"}
    assert model[0] is model[1]
    assert report.after == count(model) == 48


def test_errors_leave_the_model_as_it_was():
    model = mlp(8, hidden=1)
    modules = list(model.modules())
    for arguments, error, message in [
        ({"depth": 0}, ValueError, "convert: depth must be at least 1, got 0"),
        ({"depth": 2.0}, TypeError, "convert: depth must be an int, got 2.0"),
        ({"sandwich": 0, "where": "*"}, ValueError, "convert: sandwich must be at least 1, got 0"),
        ({"sandwich": 30}, ValueError, "convert: sandwich=30 needs where, to say which Linears it is for"),
        ({"where": ["2", "fc*"]}, ValueError, "convert: where has 'fc*', which is none of 0, 2, 4"),
        ({"where": []}, ValueError, "convert: where must choose something, got none of 0, 2, 4"),
        (
            {"where": lambda name, module: False},
            ValueError,
            "convert: where must choose something, got none of 0, 2, 4",
        ),
        ({"where": 3}, TypeError, "convert: where must be a predicate, names or patterns, got 3"),
        ({"where": [3]}, TypeError, r"convert: where must be a predicate, names or patterns, got [3]"),
        (
            {"where": "0"},
            ValueError,
            "got none of 3:\n  0, Linear(2, 8): not square\n  2, Linear(8, 8): where does not choose it\n",
        ),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            hanops.convert(model, **arguments)
    assert list(model.modules()) == modules
    with pytest.raises(TypeError, match=r"convert: model must be an nn\.Module, got 'resnet'"):
        hanops.convert("resnet")
    with pytest.raises(ValueError, match=r"convert: model must hold an nn\.Linear, got none in ReLU"):
        hanops.convert(nn.ReLU())
    with pytest.raises(ValueError, match=r"convert: model must hold the Linears, got Linear\("):
        hanops.convert(nn.Linear(8, 8))
    hanops.convert(model, verbose=False)
    with pytest.raises(ValueError, match="convert: model must hold a Linear that can be converted, got none"):
        hanops.convert(model)


class Blocks(nn.Module):
    """Many layers of three kinds, as transformers have them."""

    def __init__(self, blocks=50):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict([("proj", nn.Linear(8, 8)), ("mlp", Mlp(8, 16))]) for _ in range(blocks)
        )


def test_the_error_is_short_and_names_what_helps():
    with pytest.raises(ValueError, match="convert") as raised:
        hanops.convert(Blocks())
    assert str(raised.value).splitlines() == [
        "convert: model must hold a Linear that can be converted, got none of 150:",
        "  blocks.*.proj, Linear(8, 8), 50 of them: no activation to replace follows in an nn.Sequential",
        "  blocks.*.mlp.fc1, Linear(8, 16), 50 of them: not square",
        "  blocks.*.mlp.fc2, Linear(16, 8), 50 of them: not square",
        'where="blocks.*.proj" chooses Linears wherever the model calls them; its activations stay.',
        'where="blocks.*.mlp.fc1", sandwich=30 is for those not square: Linear, Han layers, Linear.',
    ]
    assert len(converted(hanops.convert(Blocks(), where="blocks.*.proj", verbose=False))) == 50
    assert len(converted(hanops.convert(Blocks(), where="blocks.*.mlp.fc1", sandwich=30, verbose=False))) == 50
    with pytest.raises(ValueError, match="convert: where has 'fc'") as raised:
        hanops.convert(Blocks(), where="fc")
    assert str(raised.value) == (
        "convert: where has 'fc', which is none of blocks.*.proj (50), blocks.*.mlp.fc1 (50), blocks.*.mlp.fc2 (50)"
    )
    many = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8 + n), nn.Tanh()) for n in range(1, 90)))
    with pytest.raises(ValueError, match="and 84 more") as raised:
        hanops.convert(many)
    assert len(str(raised.value).splitlines()) <= 10


# ---- what works in place after a layer


class Residual(nn.Module):
    """A layer, then a dropout that its holder calls, then an activation of the holder of both."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.drop = nn.Linear(8, 8), nn.Dropout(0.0, inplace=True)

        def forward(self, x):
            return self.drop(self.proj(x))

    def __init__(self):
        super().__init__()
        self.act, self.inner, self.norm = nn.SiLU(inplace=True), self.Inner(), nn.LayerNorm(8)
        self.far = nn.Sequential(nn.Linear(8, 8), nn.ReLU6(inplace=True))

    def forward(self, x):
        return self.norm(x + self.far(self.act(self.inner(x))))


def sequence(*after):
    return nn.Sequential(nn.Linear(8, 8), *after, nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("make", "where", "wanted"),
    [
        (lambda: sequence(nn.ReLU(), nn.Dropout(0.5, inplace=True)), None, "2"),
        (lambda: sequence(nn.ReLU(inplace=True)), "0", None),
        (lambda: sequence(nn.Hardtanh(inplace=True), nn.ReLU(inplace=True)), "0", "1"),
        (lambda: sequence(nn.Unflatten(1, (2, 4)), nn.Flatten(), nn.Hardtanh(inplace=True)), "0", "3"),
        (lambda: sequence(nn.Dropout(), nn.Dropout(0.5, inplace=True), nn.Threshold(0, 0, True)), "0", "2, 3"),
        (lambda: sequence(nn.LayerNorm(8), nn.Dropout(0.5, inplace=True)), "0", None),
        (lambda: nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Hardtanh(inplace=True)), "0.0", "1"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Hardtanh(inplace=True))), "0", "1.0"),
        (Residual, "inner.proj", "inner.drop, act"),
    ],
)
def test_nothing_works_in_place_on_the_output_of_a_layer(make, where, wanted):
    model = make()
    in_place = {name for name, module in model.named_modules() if getattr(module, "inplace", False)}
    report = hanops.convert(model, where=where, verbose=False)
    notes = [row.notes for row in report.rows if row.notes]
    assert notes == ([] if wanted is None else [f"no longer in place: {wanted}"])
    left = {name for name, module in model.named_modules() if getattr(module, "inplace", False)}
    replaced = {name for name in in_place if isinstance(model.get_submodule(name), nn.Identity)}
    assert left == in_place - replaced - set((wanted or "").split(", "))
    assert ("notes" in str(report)) == (wanted is not None)
    for mode in (True, False):  # a dropout in evaluation hands its input on
        model.train(mode)(torch.randn(5, 8)).square().sum().backward()


def test_a_shared_activation_works_in_place_nowhere():
    class Shared(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.fc, self.act = nn.Linear(8, 8), act

        def forward(self, x):
            return self.act(self.fc(x))

    model = nn.Sequential(*[Shared(nn.ReLU(inplace=True))] * 2)
    report = hanops.convert(model, where="*.fc", verbose=False)
    assert report.rows[0].notes == "no longer in place: 0.act"
    model(torch.randn(5, 8)).sum().backward()


# ---- layers of other packages that hold a Linear


class Adapted(nn.Module):
    """A dense layer as peft makes them."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features = self.out_features = 8
            self.base_layer, self.lora_a = nn.Linear(8, 8), nn.ModuleDict({"default": nn.Linear(8, 8)})

    def __init__(self):
        super().__init__()
        self.fc, self.proj = self.Linear(), nn.Linear(8, 8)


def test_a_linear_inside_another_dense_layer_is_left():
    model = Adapted()
    report = hanops.convert(model, where="*", sandwich=4, verbose=False)
    part = f"part of a {__name__}.Linear"
    assert reasons(report) == {
        "fc": f"of class {__name__}.Linear",
        "fc.base_layer": part,
        "fc.lora_a.default": part,
    }
    assert list(converted(report)) == ["proj"]
