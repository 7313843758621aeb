"""PEFT's HRA adapters, fused: what PEFT computes and writes is what the fused layers do, in every state they are in."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hanops

from .steps import same
from .test_models import llama, text

pytestmark = pytest.mark.client("peft", "HRA layers fused by hanops.peft: train, merge, disable, save and load")

LAYERS = {
    "Linear": lambda: nn.Linear(24, 16),
    "Linear without bias": lambda: nn.Linear(16, 24, bias=False),
    "Conv2d of 1 x 1": lambda: nn.Conv2d(6, 8, 1, stride=2),
    "Conv2d of 3 x 3": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def adapted(model, *targets, names=("default",), dtype=torch.float64, start=False, **options):
    """Returns a model with random adapters on the targets, all of them active."""
    from peft import HRAConfig, get_peft_model

    config = HRAConfig(r=4, target_modules=list(targets), init_weights=start, **options)
    found = get_peft_model(model, config, names[0]).to(dtype)
    for name in names[1:]:
        found.add_adapter(name, config)
    found.base_model.set_adapter(list(names))
    return found.to(dtype)


def fused(model):
    found = copy.deepcopy(model)
    report = hanops.peft.fuse_hra(found)
    assert report.fused
    assert not report.left
    return found


def results(model, x, y_grad):
    """Returns the output, and the gradients of the input and of what is trained."""
    x = x.clone().requires_grad_()
    y = model(x)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(y, [x, *trained.values()], y_grad, allow_unused=True)
    return {"y": y, **dict(zip(["x", *trained], grads, strict=True))}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("names", [("default",), ("default", "second")], ids=["one", "two"])
@pytest.mark.parametrize("gram_schmidt", [False, True], ids=["chain", "Gram-Schmidt"])
def test_outputs_and_gradients(layer, names, gram_schmidt):
    module = nn.Sequential(LAYERS[layer]())
    model = adapted(module, "0", names=names, apply_GS=gram_schmidt)
    model.base_model.model[0].base_layer.requires_grad_()  # PEFT gives the bias its gradient, and the weight none
    x = torch.randn(2, 6, 5, 5).double() if "Conv" in layer else torch.randn(3, 5, module[0].in_features).double()
    other, y_grad = fused(model), torch.randn_like(model(x))
    theirs, ours = results(model, x, y_grad), results(other, x, y_grad)
    assert sum("hra_u" in name for name in ours) == len(names)
    torch.testing.assert_close(ours, theirs)
    for name in names:  # one at a time, and none
        for both in (model, other):
            both.base_model.set_adapter(name)
        torch.testing.assert_close(other(x), model(x))
    for both in (model, other):
        both.base_model.model[0].set_adapter([])
    torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-6)  # PEFT casts to float32


# PEFT starts reflectors in equal pairs: after Gram-Schmidt every second one is rounding, and so is its gradient.
@pytest.mark.parametrize(
    ("gram_schmidt", "start"), [(False, True), (False, False), (True, False)], ids=["start", "chain", "Gram-Schmidt"]
)
def test_training(gram_schmidt, start):
    model = adapted(llama(), "q_proj", "v_proj", "down_proj", start=start, apply_GS=gram_schmidt)
    pair = {"theirs": model, "ours": fused(model)}
    batch, losses = text(model), {}
    for name, each in pair.items():
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], 1.0)
        losses[name] = []
        for _ in range(11):
            optimizer.zero_grad()
            value = each(**batch).loss
            value.backward()
            optimizer.step()
            losses[name].append(value.item())
    assert losses["theirs"][-1] < losses["theirs"][0]
    torch.testing.assert_close(losses["ours"], losses["theirs"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("gram_schmidt", [False, True], ids=["chain", "Gram-Schmidt"])
def test_merged_unmerged_disabled(gram_schmidt):
    model = adapted(llama(), "q_proj", "down_proj", names=("default", "second"), apply_GS=gram_schmidt)
    other, batch = fused(model), text(model)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    wanted = other(**batch).logits
    with other.disable_adapter(), model.disable_adapter():
        plain = other(**batch).logits
        assert torch.equal(plain, model(**batch).logits)
    assert not torch.allclose(plain, wanted)
    for safe in (False, True):
        for both in (model, other):
            both.merge_adapter(safe_merge=safe)
        assert torch.equal(other(**batch).logits, model(**batch).logits)
        torch.testing.assert_close(other(**batch).logits, wanted)
        for both in (model, other):
            both.unmerge_adapter()
        torch.testing.assert_close(other.state_dict(), before)
        torch.testing.assert_close(other(**batch).logits, wanted)
    for both in (model, other):  # disabled while merged: PEFT unmerges
        both.merge_adapter()
    with other.disable_adapter():
        torch.testing.assert_close(other(**batch).logits, plain)
    alone = other.merge_and_unload()
    assert not any(type(module).__module__.startswith(("peft", "hanops")) for module in alone.modules())
    torch.testing.assert_close(alone(**batch).logits, wanted)


def test_saved_and_loaded(tmp_path):
    from peft import PeftModel

    torch.manual_seed(1)
    model = adapted(llama(), "q_proj", "o_proj", dtype=torch.float32)
    other, batch = fused(model), text(model)
    assert list(other.state_dict()) == list(model.state_dict())
    for name, each in {"theirs": model, "ours": other}.items():
        each.save_pretrained(tmp_path / name)
    ours, theirs = (tmp_path / name / "adapter_model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
    torch.manual_seed(1)
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "ours")  # not fused: what was saved is PEFT's
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        hanops.peft.fuse_hra(loaded)
        assert torch.equal(loaded(**batch).logits, other(**batch).logits)
        other.load_adapter(tmp_path / "theirs", "again")
        other.set_adapter("again")
        assert torch.equal(loaded(**batch).logits, other(**batch).logits)


@pytest.mark.parametrize("gram_schmidt", [False, True], ids=["chain", "Gram-Schmidt"])
def test_bfloat16(gram_schmidt):
    """A bfloat16 base with adapters in float32, as PEFT makes them; with adapters in bfloat16; float32 by autocast."""
    x = torch.randn(200, 64)
    exact = adapted(nn.Sequential(nn.Linear(64, 48)), "0", apply_GS=gram_schmidt)
    for value in exact.parameters():
        value.data = value.data.bfloat16().double()
    wanted = exact(x.bfloat16().double())

    def error(model, x):
        y = model(x)
        return (y.double() - wanted).abs().mean().item(), y.dtype

    mixed = copy.deepcopy(exact).float()
    mixed.base_model.model[0].base_layer.bfloat16()
    half, autocast = copy.deepcopy(exact).bfloat16(), copy.deepcopy(exact).float()
    x = x.bfloat16()
    rounding = (wanted.bfloat16().double() - wanted).abs().mean().item()
    value, dtype = error(fused(mixed), x)
    assert dtype is torch.bfloat16
    assert value <= 1.01 * rounding  # the last one, and no other
    value, dtype = error(fused(half), x)
    assert dtype is torch.bfloat16
    assert value <= error(half, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        value, dtype = error(fused(autocast), x.float())
        assert dtype is torch.float32
        assert value <= error(autocast, x.float())[0]


def test_input_that_is_not_cast():
    from peft.helpers import disable_input_dtype_casting

    model = adapted(nn.Sequential(nn.Linear(24, 16)), "0", dtype=torch.float32)
    other, x = fused(model), torch.randn(5, 24).double()
    with disable_input_dtype_casting(model), disable_input_dtype_casting(other):
        torch.testing.assert_close(other(x).float(), model(x).float())
        assert other(x).dtype is torch.float64


class Sizes(TorchDispatchMode):
    """Notes how many elements the tensors have that operations make."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        self.found += [t.numel() for t in (made if isinstance(made, tuple | list) else [made]) if torch.is_tensor(t)]
        return made


@pytest.mark.parametrize("gram_schmidt", [False, True], ids=["chain", "Gram-Schmidt"])
def test_no_matrix_is_made(gram_schmidt):
    model = adapted(nn.Sequential(nn.Linear(64, 64)), "0", dtype=torch.float32, apply_GS=gram_schmidt)
    largest = {}
    for name, each in {"theirs": model, "ours": fused(model)}.items():
        with Sizes() as sizes:
            each(torch.randn(3, 64, requires_grad=True)).sum().backward()
        largest[name] = sum(size >= 64 * 64 for size in sizes.found)
    assert largest["ours"] <= 3 < largest["theirs"]  # views of the frozen weight


def test_compiled():
    model = fused(adapted(nn.Sequential(nn.Linear(24, 16)), "0", dtype=torch.float32))
    x = torch.randn(5, 24)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


# ---- what is fused, and what is left


def test_fused_once_and_back(tmp_path):
    from peft.tuners.hra.layer import HRALinear

    model = adapted(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), "0", dtype=torch.float32)
    layer, text_of = model.base_model.model[0], repr(model)
    report = hanops.peft.fuse_hra(model)
    assert report == hanops.peft.fuse_hra(model) == hanops.peft.Fusion(("base_model.model.0",), {})
    assert isinstance(layer, HRALinear)
    assert repr(model) == text_of.replace("hra.HRALinear", "hra.FusedHRALinear")
    x = torch.randn(5, 8)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied.base_model.model[0]) is hanops.peft.FusedHRALinear
        same(model, copied, x)
    torch.save(model, tmp_path / "model.pt")
    same(model, torch.load(tmp_path / "model.pt", weights_only=False), x)
    hanops.peft.unfuse_hra(model)
    assert type(layer) is HRALinear
    assert repr(model) == text_of


def test_left_with_a_reason():
    from peft.tuners.hra.layer import HRALinear

    class Own(HRALinear):
        pass

    modules = [*(nn.Linear(8, 8) for _ in range(4)), nn.Conv2d(8, 8, (1, 3))]
    model = adapted(nn.Sequential(*modules), "0", "1", "2", "3", "4", dtype=torch.float32)
    layers = model.base_model.model
    layers[1].__class__ = Own
    layers[2].forward = layers[2].base_layer.forward
    layers[3].base_layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    report = hanops.peft.fuse_hra(model)
    assert report.fused == ("base_model.model.0",)
    assert report.left == {
        "base_model.model.1": "of class Own, which may have a forward of its own",
        "base_model.model.2": "its forward was replaced",
        "base_model.model.3": "its weight is of dtype torch.uint8",
        "base_model.model.4": "its kernel, (1, 3), is not square, which PEFT's formula needs",
    }
    assert type(layers[1]) is Own
    assert type(layers[2]) is type(layers[3]) is HRALinear


def test_nothing_to_fuse():
    with pytest.raises(ValueError, match="model must have HRA layers of PEFT"):
        hanops.peft.fuse_hra(nn.Linear(4, 4))


def test_example(capsys, monkeypatch):
    from examples import hra

    words = ["--steps", "3", "--hidden", "32", "--features", "64", "--rows", "32", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["hra", *words])
    hra.main()
    printed = capsys.readouterr().out
    assert "| Linear, 64 x 64 |" in printed
    assert "losses differ by at most" in printed
