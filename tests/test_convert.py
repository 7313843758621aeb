"""Models are converted in place: what becomes a Han stack, what is left and why, and that the result trains."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hanops
from hanops.conversion import Row


def mlp(width=16, hidden=3, activation=nn.ReLU):
    layers = [nn.Linear(2, width), activation()]
    for _ in range(hidden):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class Functional(nn.Module):
    """Layers as attributes, the activation as a function."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


class Mlp(nn.Module):
    """The blocks of vision transformers."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def reasons(report):
    return {row.name: row.now for row in report.rows if not row.converted}


def converted(report):
    return {row.name: row.now for row in report.rows if row.converted}


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_sequential_becomes_one_stack():
    model = mlp(16, hidden=3)
    state = model.state_dict()
    before = count(model)
    report = hanops.convert(model, verbose=False)
    assert [type(module).__name__ for module in model] == [
        *("Linear", "ReLU", "HanStack", "Identity", "Identity", "Identity", "Identity", "Identity", "Linear")
    ]
    assert (model[2].features, model[2].depth, model[2].final_abs) == (16, 9, True)
    assert report.rows == (
        Row("0", "Linear(2, 16)", "not square", False, 48, 48),
        Row("2", "Linear(16, 16), ReLU", "HanStack(16, depth=9)", True, 272, 9 * 2 * 16),
        Row("4", "Linear(16, 16), ReLU", "in the stack of 2", True, 272, 0),
        Row("6", "Linear(16, 16), ReLU", "in the stack of 2", True, 272, 0),
        Row("8", "Linear(16, 1)", "not square", False, 17, 17),
    )
    assert (report.before, report.after) == (before, count(model)) == (881, 48 + 288 + 17)
    assert torch.equal(model[0].weight, state["0.weight"])  # what was left keeps its name and its values
    assert torch.equal(model[8].weight, state["8.weight"])
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.u", "2.b", "8.weight", "8.bias"]


def test_one_stack_equals_a_stack_for_each_layer():
    model = mlp(16, hidden=2)
    hanops.convert(model, depth=2, verbose=False)
    u, b, x = model[2].u, model[2].b, torch.randn(5, 2)
    y = F.relu(model[0](x))
    for layers in (slice(0, 2), slice(2, 4)):
        y = hanops.han_stack(y, u[layers], b[layers])
    torch.testing.assert_close(model(x), model[6](y))


def test_report_is_printed(capsys):
    report = hanops.convert(mlp(16, hidden=2))
    assert capsys.readouterr().out == f"{report}\n"
    assert str(report).splitlines() == [
        "layer        was                   parameters  now                    parameters",
        "0            Linear(2, 16)                 48  left: not square               48",
        "2            Linear(16, 16), ReLU         272  HanStack(16, depth=6)         192",
        "4            Linear(16, 16), ReLU         272  in the stack of 2               0",
        "6            Linear(16, 1)                 17  left: not square               17",
        "whole model                               609                                257",
    ]
    hanops.convert(mlp(), verbose=False)
    assert capsys.readouterr().out == ""


def test_converted_model_trains():
    torch.manual_seed(0)
    model = mlp(30, hidden=4)
    hanops.convert(model, depth=3, verbose=False)
    optimizer = torch.optim.Adam(hanops.param_groups_weight_decay(model, 1e-4), lr=1e-2)
    x = torch.rand(512, 2) * 2 - 1
    target = torch.sin(4 * x[:, :1]) * torch.sin(4 * x[:, 1:])
    for _ in range(300):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * target.var().item()


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Softplus])
def test_activations_that_are_replaced(activation):
    model = mlp(8, hidden=1, activation=activation)
    report = hanops.convert(model, verbose=False)
    assert report.rows[1].was == f"Linear(8, 8), {activation.__name__}"
    assert isinstance(model[3], nn.Identity)


@pytest.mark.parametrize(
    "after",
    [
        lambda: nn.Sigmoid(),
        lambda: nn.Tanh(),
        lambda: nn.Softmax(-1),
        lambda: nn.PReLU(),
        lambda: nn.BatchNorm1d(8),
        lambda: nn.Dropout(),
        lambda: nn.Linear(8, 1),
    ],
)
def test_other_modules_stay(after):
    following = after()
    model = nn.Sequential(nn.Linear(8, 8), following, *mlp(8, hidden=1)[2:])
    report = hanops.convert(model, verbose=False)
    assert reasons(report)["0"] == "no activation to replace follows in an nn.Sequential"
    assert type(model[0]) is nn.Linear
    hanops.convert(model, where="0", verbose=False)
    assert isinstance(model[0], hanops.HanStack)
    assert not model[0].final_abs  # signs stay for what follows
    assert model[1] is following


def test_pairs_that_differ_make_stacks_of_their_own():
    model = nn.Sequential(
        *(
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Linear(8, 8, bias=False),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8, 8, bias=False),
        ),
        *(nn.ReLU(), nn.Linear(8, 8).requires_grad_(False), nn.ReLU()),
    )
    hanops.convert(model, depth=1, verbose=False)
    stacks = [model[i] for i in (0, 2, 5, 7)]
    assert all(isinstance(stack, hanops.HanStack) and stack.depth == 1 for stack in stacks)
    assert [stack.b is None for stack in stacks] == [False, True, True, False]
    assert [stack.u.requires_grad for stack in stacks] == [True, True, True, False]
    assert not stacks[3].b.requires_grad


def test_blocks_keep_stacks_of_their_own():
    first = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model = nn.Sequential(first, nn.Sequential(nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU()))
    report = hanops.convert(model, verbose=False)
    assert converted(report) == {"0.0": "HanStack(8, depth=3)", "1.2": "HanStack(8, depth=3)"}


def test_mlp_block_becomes_the_papers_han_block():
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
    report = hanops.convert(model, depth=1, where="*", verbose=False)
    assert converted(report) == {"1": "HanStack(8, depth=2, final_abs=False)", "3": "in the stack of 1"}  # H, abs, H
    assert (report.before, report.after) == (16 + 144, 16 + 32)


def test_a_sequential_with_its_own_forward_is_not_seen_through():
    class Skip(nn.Sequential):
        def forward(self, x):
            return x + self[1](self[0](x))

    model = Skip(nn.Linear(8, 8), nn.ReLU())
    with pytest.raises(ValueError, match=r"0, Linear\(8, 8\): no activation to replace follows in an nn\.Sequential"):
        hanops.convert(model)
    hanops.convert(model, where="0", verbose=False)
    assert not model[0].final_abs
    assert isinstance(model[1], nn.ReLU)


def test_layers_that_are_attributes():
    model, x = Functional(), torch.randn(3, 8)
    with pytest.raises(
        ValueError, match=r"first, Linear\(8, 8\): no activation .*\n  second, Linear\(8, 8\): no activation"
    ):
        hanops.convert(model)
    assert isinstance(model.first, nn.Linear)
    hanops.convert(model, depth=2, where=["first", "sec*"], verbose=False)
    y = F.relu(hanops.han_stack(x, model.first.u, model.first.b, final_abs=False))
    assert (y == 0).any()  # the forward's own activation still sees signs
    torch.testing.assert_close(model(x), hanops.han_stack(y, model.second.u, model.second.b, final_abs=False))


def test_where_as_a_predicate_and_as_patterns():
    given = []

    def where(name, module):
        given.append((name, module))
        return name.endswith("fc1")

    model = nn.Sequential(Mlp(8, 8), Mlp(8, 8))
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    other = copy.deepcopy(model)
    report = hanops.convert(model, where=where, verbose=False)
    assert given == named
    assert list(converted(report)) == ["0.fc1", "1.fc1"]
    assert reasons(report) == {"0.fc2": "where does not choose it", "1.fc2": "where does not choose it"}
    assert hanops.convert(other, where="*.fc1", verbose=False) == report
    assert model(torch.randn(3, 8)).shape == (3, 8)


def test_sandwich():
    model = nn.Sequential(nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, 10))
    report = hanops.convert(model, depth=3, where=["0"], sandwich=30, verbose=False)
    assert converted(report) == {"0": "Linear(2048, 30), Abs, HanStack(30, depth=3), Linear(30, 256)"}
    assert report.rows[0].after == 2048 * 30 + 30 + 6 * 30 + 30 * 256 + 256
    assert report.after == count(model) == report.rows[0].after + 2570
    assert isinstance(model[1], nn.ReLU)  # after a dense layer the activation stays
    x = torch.randn(3, 2048)
    head = hanops.models.HanHead(2048, 256)  # the paper's, of the same parts
    for own, part in zip(
        (head.dense, head.stack, head.classifier), (model[0][0], model[0][2], model[0][3]), strict=True
    ):
        own.load_state_dict(part.state_dict())
    torch.testing.assert_close(model[0](x), head(x))


def test_sandwich_and_square_layers_together():
    model = mlp(16, hidden=2)
    report = hanops.convert(model, depth=1, where="*", sandwich=4, verbose=False)
    assert list(converted(report)) == ["0", "2", "4", "6"]
    assert isinstance(model[1], nn.ReLU)
    assert (model[2].features, model[2].depth) == (16, 2)
    assert model(torch.randn(3, 2)).shape == (3, 1)
    assert report.after == count(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sandwich", [None, 4])
def test_dtype_mode_and_gradients_are_kept(dtype, sandwich):
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 6)).to(dtype).eval()
    model[2].bias.requires_grad_(False)
    hanops.convert(model, where="*", sandwich=sandwich, verbose=False)
    assert all(p.dtype == dtype for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model[0].b is None
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == (["2.bias"] if sandwich is None else ["2.0.bias", "2.2.b", "2.3.bias"])
    y = model(torch.randn(3, 8, dtype=dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()
    y.float().sum().backward()
    assert model[0].u.grad.abs().sum() > 0


def test_device_is_kept():
    with torch.device("meta"):
        model = mlp()
    hanops.convert(model, where="*", sandwich=4, verbose=False)
    assert all(p.is_meta for p in model.parameters())


def test_state_dict_and_copies():
    model = mlp(16, hidden=2)
    hanops.convert(model, where="*", sandwich=4, verbose=False)
    other, x = copy.deepcopy(model), torch.randn(3, 2)
    assert torch.equal(other(x), model(x))
    assert other[2].u.data_ptr() != model[2].u.data_ptr()
    fresh = mlp(16, hidden=2)
    hanops.convert(fresh, where="*", sandwich=4, verbose=False)
    assert not torch.equal(fresh(x), model(x))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("layers", [1, 2])
def test_transformer_encoder(layers):
    """Its fast path in evaluation reads the weights of the Linears; with Han layers it may not be taken."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, layers)
    attention = {name: p.clone() for name, p in model.named_parameters() if "self_attn" in name}
    report = hanops.convert(model, where="*", sandwich=8, verbose=False)
    assert list(converted(report)) == [f"layers.{i}.linear{k}" for i in range(layers) for k in (1, 2)]
    assert set(reasons(report).values()) == {"nn.MultiheadAttention reads its weight"}
    after = dict(model.named_parameters())
    assert attention
    assert all(torch.equal(p, after[name]) for name, p in attention.items())
    x = torch.randn(3, 5, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    trained = model(x, src_key_padding_mask=padding)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), trained)
        torch.testing.assert_close(model(x), model(x, mask=torch.zeros(5, 5)))


def test_transformer_with_default_where_is_refused_with_reasons():
    model = nn.TransformerEncoderLayer(16, 2, 32)
    with pytest.raises(
        ValueError, match=r"linear1, .*: not square\n  linear2, .*: not square\n  self_attn\.out_proj, .*: nn\.Multi"
    ):
        hanops.convert(model)
