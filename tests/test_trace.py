"""HanStack in torch.fx, TorchScript and torch.jit.trace: rows of docs/compatibility.md."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import hanops
from hanops.definition import reference

from .compatibility import BACKENDS, close, gradients, network, row, truth_of

ANY = dict.fromkeys(BACKENDS, "yes, any")


class Functions(nn.Module):
    """Han layers as functions, on parameters of a module. torch.fx keeps annotations: strings could not be saved."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.b, self.v = (nn.Parameter(torch.randn(shape)) for shape in ((3, 6), (3, 6), (6,)))

    def forward(self, x):
        y = hanops.han_stack(x, self.u, self.b, final_abs=False)
        return hanops.han_layer(hanops.han_layer(y, self.v), self.v, self.b[0])


class PlainFunctions(Functions):
    def forward(self, x):
        y = reference.han_stack(x, self.u, self.b, final_abs=False)
        v = self.v.unsqueeze(0)
        return reference.han_stack(reference.han_stack(y, v), v, self.b[:1])


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "network": (network, (5, 4)),
    "an axis": (lambda: hanops.HanStack(6, 3, dim=1, final_abs=False), (5, 6, 4)),
    "groups": (lambda: hanops.HanStack(6, 3, dim=-2, groups=2), (2, 6, 4)),
    "layer": (lambda: hanops.HanLayer(6, bias=False), (5, 6)),
    "functions": (Functions, (5, 6)),
}


@pytest.fixture(params=MODELS)
def case(request, device) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, its truth, and an input."""
    make, shape = MODELS[request.param]
    model = make().to(device)
    truth = truth_of(model)
    if isinstance(truth, Functions):
        truth.__class__ = PlainFunctions
    return model, truth, torch.randn(shape, device=device)


@row("Trace", "`torch.fx.symbolic_trace` of modules and functions; the graph is copied, pickled and trained")
def test_symbolic_trace(backend, case):
    model, truth, x = case
    traced = torch.fx.symbolic_trace(model)
    wanted = gradients(truth, x.double())
    for m in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        close(gradients(m, x), wanted)


@row("Trace", "a traced graph, saved by `torch.save`, runs in a process that did not import hanops", **ANY)
def test_traced_graph_elsewhere(tmp_path):
    model, x = nn.Sequential(hanops.HanStack(6, 3, dim=1), hanops.HanLayer(4)), torch.randn(5, 6, 4)
    traced = torch.fx.symbolic_trace(model)
    with pytest.raises(ValueError, match=r"HanStack: x must have an axis 1, got shape \[6\]"):
        traced(x[0, :, 0])
    torch.save((traced, x, model(x)), tmp_path / "traced.pt")
    script = (
        "import sys, torch\n"
        "assert 'hanops' not in sys.modules\n"
        f"traced, x, y = torch.load({str(tmp_path / 'traced.pt')!r}, weights_only=False)\n"
        "torch.testing.assert_close(traced(x), y)"
    )
    root = Path(hanops.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


@row("Trace", "`torch.fx.experimental.optimization.fuse`: BatchNorms beside a stack go into their convolutions", **ANY)
def test_fusion():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), hanops.HanStack(6, 2, dim=1), hanops.HanLayer(4))
    x = torch.randn(8, 3, 6, 6)
    model(x)
    model.eval()
    fused = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    close(fused(x), model(x))


@row("Trace", "`hanops.models`, traced and pickled; all but MobileViT also scripted", **ANY)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_models():
    cases = [
        (hanops.models.HanNet(4, 6, 5, 2), (5, 4)),
        (hanops.models.HanNet(4, 6, 5, 2, groups=3, activation="maxmin"), (3, 5, 4)),
        (hanops.models.FCNet(4, 6, 3, 2, groups=3), (3, 5, 4)),
        (hanops.models.HanHead(12, 3, features=6), (5, 12)),
        (hanops.models.Mixer(3, channels=16, mlp_blocks=1, han_blocks=2), (2, 3, 32, 32)),
        (hanops.models.mobilevit_xxs(3, han=True), (2, 3, 32, 32)),
    ]
    for model, shape in cases:
        x = torch.randn(shape)
        wanted = model.eval()(x)
        close(pickle.loads(pickle.dumps(torch.fx.symbolic_trace(model)))(x), wanted)
        if not isinstance(model, hanops.models.MobileViT):
            close(torch.jit.script(model)(x), wanted)


@row("Trace", "`torch.jit.script` of modules and functions, saved, loaded and trained")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_script(backend, case):
    model, truth, x = case
    scripted = torch.jit.script(model)
    wanted = gradients(truth, x.double())
    close(gradients(scripted, x), wanted)
    close(gradients(through_file(scripted), x), wanted)


@row("Trace", "`torch.jit.trace`, saved, loaded and trained, at another batch size")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_jit_trace(backend, case):
    model, truth, x = case
    traced = torch.jit.trace(model, x[..., :3, :] if x.dim() == 2 else x[..., :3])
    close(gradients(through_file(traced), x), gradients(truth, x.double()))


def through_file(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Returns what torch.jit.load makes of a module that torch.jit.save wrote."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)
