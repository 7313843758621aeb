"""Packages that explain, attack, count, quantize or make private: each on a HanStack by hand and by `convert`."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hanops

from .steps import learns, loss_of


@pytest.mark.client("opacus", "PrivacyEngine with grad_sample_mode='functorch'")
def test_opacus(make, data):
    from opacus import PrivacyEngine

    model = make()
    for name, module in model.named_children():  # opacus refuses both after any layer
        if isinstance(module, nn.Dropout):
            model.add_module(name, nn.Identity())
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    before = loss_of(model, data)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(*data), 64),
        noise_multiplier=0.05,
        max_grad_norm=1.0,
        grad_sample_mode="functorch",
    )
    for _ in range(15):
        for x, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(private(x), labels).backward()
            optimizer.step()
    assert loss_of(model, data) < before


@pytest.mark.client("captum", "IntegratedGradients, Saliency, LayerActivation; the attributions add up")
def test_captum(make, data):
    from captum.attr import IntegratedGradients, LayerActivation, Saliency

    model = make()
    learns(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]))
    model.eval()
    x, base = data[0][:8], torch.zeros(8, 4)
    shares = IntegratedGradients(model).attribute(x, base, target=1, n_steps=200)
    with torch.no_grad():
        wanted = (model(x) - model(base))[:, 1]
    torch.testing.assert_close(shares.sum(1).float(), wanted, rtol=0.02, atol=0.02)
    assert Saliency(model).attribute(x, target=1).abs().sum() > 0
    stack = next(module for module in model if isinstance(module, hanops.HanStack))
    assert LayerActivation(model, stack).attribute(x).shape == (8, 16)


@pytest.mark.client("foolbox", "PGD within a ball finds adversarial points")
def test_foolbox(make, data):
    import foolbox

    model = make()
    learns(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]), steps=50)
    wrapped = foolbox.PyTorchModel(model.eval(), bounds=(-6, 6), device="cpu")
    labels = model(data[0]).argmax(1)
    _, clipped, success = foolbox.attacks.LinfPGD(steps=20)(wrapped, data[0], labels, epsilons=0.8)
    assert success.float().mean() > 0.2
    assert (clipped - data[0]).abs().max() <= 0.8 + 1e-5


@pytest.mark.client("torchao", "int8 weights of the Linears around a stack")
def test_torchao(make, data):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = make()
    learns(model, lambda: nn.functional.cross_entropy(model(data[0]), data[1]))
    model.eval()
    small = copy.deepcopy(model)
    quantize_(small, Int8WeightOnlyConfig())
    with torch.no_grad():
        torch.testing.assert_close(small(data[0]), model(data[0]), rtol=0.05, atol=0.05)
    assert any(type(p).__name__ != "Parameter" for p in small.parameters())
    report = hanops.convert(nn.Sequential(small, nn.Linear(2, 2), nn.ReLU()), verbose=False)
    assert {row.name: row.converted for row in report.rows} == {
        name: name == "1"
        for name in ("1", *(f"0.{name}" for name, m in model.named_children() if type(m) is nn.Linear))
    }


# ---- counters of parameters and operations


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.client("torchinfo", "summary: all parameters; multiply-adds of other modules only")
def test_torchinfo(make):
    from torchinfo import summary

    model = make()
    found = summary(model, (5, 4), verbose=0)
    assert found.total_params == parameters(model)


@pytest.mark.client("ptflops", "operations and parameters, by hanops.metrics.ptflops_hooks()")
def test_ptflops(make):
    from ptflops import get_model_complexity_info

    model = make()
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    hooks = hanops.metrics.ptflops_hooks()
    work, size = get_model_complexity_info(model.eval(), (4,), custom_modules_hooks=hooks, **options)
    without, _ = get_model_complexity_info(model.eval(), (4,), **options)
    stack = next(module for module in model if isinstance(module, hanops.HanStack))
    assert size == parameters(model)
    assert work - without == 2 * 16 * stack.depth


@pytest.mark.client("thop", "operations and parameters, by hanops.metrics.thop_hooks()")
def test_thop(make):
    from thop import profile

    model, x = make().eval(), torch.randn(5, 4)
    stack = next(module for module in model if isinstance(module, hanops.HanStack))
    work, size = profile(copy.deepcopy(model), (x,), custom_ops=hanops.metrics.thop_hooks(), verbose=False)
    without, _ = profile(copy.deepcopy(model), (x,), verbose=False)
    assert size == parameters(model)
    assert work - without == 2 * 5 * 16 * stack.depth


@pytest.mark.client("fvcore", "FlopCountAnalysis with hanops.metrics.fvcore_handles(); parameter_count")
def test_fvcore(make):
    from fvcore.nn import FlopCountAnalysis, parameter_count

    model = make().eval()
    stack = next(module for module in model if isinstance(module, hanops.HanStack))
    analysis = FlopCountAnalysis(model, torch.randn(5, 4)).set_op_handle(**hanops.metrics.fvcore_handles())
    assert analysis.by_operator()["han_stack"] == 2 * 5 * 16 * stack.depth
    assert parameter_count(model)[""] == parameters(model)


@pytest.mark.client("torchsummary", "the table of layers; it counts only what is called weight and bias")
def test_torchsummary(make, capsys):
    from torchsummary import summary

    summary(make(), (4,), device="cpu")
    assert "HanStack" in capsys.readouterr().out
