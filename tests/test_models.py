"""HanNet and FCNet: the papers' parameter counts, the authors' layout, groups that train as single networks do."""

import pytest
import torch
from torch import Tensor

import hanops
from hanops import metrics
from hanops.backends.native import native
from hanops.definition import reference
from hanops.models import FCNet, HanNet, load_hannet, orthogonality_penalty

COUNTS = {
    "checkerboard HanNet 20x30": (lambda: HanNet(2, 30, 20, 2, dense_layers=(2, 20)), 3032),
    "checkerboard FCNet1 6x100": (lambda: FCNet(2, 100, 6, 2), 51002),
    "checkerboard FCNet2 10x100": (lambda: FCNet(2, 100, 10, 2), 91402),
    "checkerboard FCNet3 6x300": (lambda: FCNet(2, 300, 6, 2), 453002),
    "elevators HanNet 20x200": (lambda: HanNet(18, 200, 20, 1), 11601),
    "elevators FCNet1 5x50": (lambda: FCNet(18, 50, 5, 1), 11201),
    "elevators FCNet2 5x200": (lambda: FCNet(18, 200, 5, 1), 164801),
    "calhousing HanNet 20x200": (lambda: HanNet(8, 200, 20, 1), 9601),
    "calhousing FCNet1 5x50": (lambda: FCNet(8, 50, 5, 1), 10701),
    "calhousing FCNet2 5x200": (lambda: FCNet(8, 200, 5, 1), 162801),
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameters(name):
    make, count = COUNTS[name]
    assert sum(p.numel() for p in make().parameters()) == count


def plain_hannet(model: HanNet, x: Tensor) -> Tensor:
    """Computes a HanNet layer by layer in plain torch."""
    for module in model.hidden:
        if isinstance(module, hanops.HanStack):
            x = reference.han_stack(x, module.u, module.b, module.final_abs)
        elif isinstance(module, torch.nn.Linear):
            x = x @ module.weight.t() + module.bias
        else:
            x = x.abs()
    return x @ model.out.weight.t() + model.out.bias


def test_hannet_is_its_layers():
    model = HanNet(3, 10, 9, 2, dense_layers=(2, 6, 9))
    kinds = [type(m).__name__ for m in model.hidden]
    assert kinds == ["Linear", "Abs", "Linear", "Abs", "HanStack", "Linear", "Abs", "HanStack", "Linear", "Abs"]
    assert [m.depth for m in model.hidden if isinstance(m, hanops.HanStack)] == [3, 2]
    x = torch.randn(7, 3)
    torch.testing.assert_close(model(x), plain_hannet(model, x))


def test_initialisation():
    model = HanNet(2, 30, 20, 2, dense_layers=(2, 20))
    square = model.hidden[2].weight
    torch.testing.assert_close(square @ square.t(), torch.eye(30), atol=1e-5, rtol=0)
    assert model.hidden[4].b.abs().max() <= 30**-0.5
    spread = torch.cat([FCNet(2, 100, 6, 2).hidden[2].weight.flatten() for _ in range(5)]).std().item()
    assert spread == pytest.approx((2 / 100) ** 0.5, rel=0.02)


@pytest.mark.parametrize("activation", ["relu", "maxmin", "groupsort", "abs"])
def test_ablation_variants(activation):
    x = torch.randn(7, 2)
    for model in (
        HanNet(2, 30, 6, 2, dense_layers=(2, 6), activation=activation),
        FCNet(2, 30, 6, 2, activation=activation),
    ):
        y = model(x)
        y.square().sum().backward()
        assert y.shape == (7, 2)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_activations():
    from hanops.models.layers import make_activation

    x = torch.tensor([[4.0, -1.0, 3.0, 7.0, 0.0, 5.0, 2.0, -6.0, 8.0, 1.0]])
    assert make_activation("maxmin", 10)(x).tolist() == [[-1, 4, 3, 7, 0, 5, -6, 2, 1, 8]]
    assert make_activation("groupsort", 10)(x).tolist() == [[-1, 0, 3, 4, 7, -6, 1, 2, 5, 8]]
    with pytest.raises(ValueError, match="activation must be one of abs, relu, maxmin, groupsort, got 'tanh'"):
        make_activation("tanh", 10)
    for network in (HanNet, FCNet):
        with pytest.raises(ValueError, match="width must be a multiple of 5, the runs that 'groupsort' sorts, got 32"):
            network(2, 32, 3, 1, activation="groupsort")


def authors_state(model: HanNet) -> dict[str, Tensor]:
    """Returns a model's parameters under the authors' keys."""
    state, index = {"classifer.weight": model.out.weight, "classifer.bias": model.out.bias}, 0
    for module in model.hidden:
        if isinstance(module, hanops.HanStack):
            for u, b in zip(3 * module.u, module.b, strict=True):  # any scale
                state |= {f"feature.{index}.vector": u.unsqueeze(1), f"feature.{index}.bias": b}
                index += 2
        elif isinstance(module, torch.nn.Linear):
            state |= {f"feature.{index}.weight": module.weight, f"feature.{index}.bias": module.bias}
            index += 2
    return {key: value.detach().clone() for key, value in state.items()}


@pytest.mark.parametrize("dense_layers", [(), (2, 20), (7, 8, 13)])
def test_load_hannet(dense_layers):
    model = HanNet(4, 12, 20, 3, dense_layers=dense_layers)
    loaded = load_hannet(authors_state(model))
    assert loaded.dense_layers == dense_layers
    x = torch.randn(9, 4)
    torch.testing.assert_close(loaded(x), model(x))


def test_load_hannet_errors():
    state = authors_state(HanNet(4, 12, 3, 3))
    with pytest.raises(ValueError, match=r"load_hannet: state_dict must have the keys .* got \['foo'\]"):
        load_hannet({"foo": torch.zeros(1)})
    with pytest.raises(ValueError, match="must have the keys"):
        load_hannet({**state, "feature.0.mask": torch.zeros(1)})
    del state["feature.0.weight"], state["feature.0.bias"]
    with pytest.raises(ValueError, match=r"the first hidden layer must be dense, got feature\.2\.vector"):
        load_hannet(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature.2.weight": torch.zeros(12, 12)}, "feature.2 must have a vector or a weight, got vector and weight"),
        ({"feature.2.vector": None}, "feature.2 must have a vector or a weight, got neither"),
        ({"feature.0.bias": None}, r"state_dict must have feature.0.bias, got \["),
        ({"classifer.bias": None}, r"state_dict must have classifer.bias, got \["),
        ({"classifier.weight": torch.zeros(3, 12)}, "must have the keys"),
        ({"feature.weight": torch.zeros(12)}, "must have the keys"),
        ({"feature.x.weight": torch.zeros(12)}, "must have the keys"),
        ({"feature.00.weight": torch.zeros(12, 4)}, "must have the keys"),
        ({1: torch.zeros(12)}, "must have the keys"),
        ({"feature.0.weight": torch.zeros(12)}, r"feature.0.weight must have 2 axes, got shape \[12\]"),
        ({"feature.0.weight": torch.zeros(0, 4)}, r"feature.0.bias must have shape \[0\], got \[12\]"),
        ({"feature.2.vector": torch.zeros(11, 1)}, r"feature.2.vector must have shape \[12, 1\], got \[11, 1\]"),
        ({"feature.4.bias": torch.zeros(12, 1)}, r"feature.4.bias must have shape \[12\], got \[12, 1\]"),
        ({"classifer.bias": torch.zeros(())}, r"classifer.bias must have shape \[1\], got \[\]"),
        ({"classifer.weight": torch.zeros(3, 5)}, r"classifer.weight must have shape \[3, 12\], got \[3, 5\]"),
        ({"feature.0.weight": torch.zeros(12, 4).int()}, "must have tensors of one dtype: .*feature.0.weight is torch"),
        ({"feature.2.bias": torch.zeros(12).half()}, "one dtype: .*feature.2.bias is torch.float16, feature.0.weight"),
        ({"feature.2.bias": [0.0] * 12}, "one dtype: .*feature.2.bias is list"),
    ],
)
def test_a_malformed_state_is_refused(change, message):
    state = {**authors_state(HanNet(4, 12, 3, 3)), **change}
    with pytest.raises(ValueError, match=f"load_hannet: .*{message}"):
        load_hannet({key: value for key, value in state.items() if value is not None})


def test_both_spellings_of_the_authors():
    """Their checkerboard has `classifer`, their regression networks `classifier`."""
    model = HanNet(4, 12, 3, 1)
    state = {key.replace("classifer", "classifier"): value for key, value in authors_state(model).items()}
    x = torch.randn(9, 4)
    torch.testing.assert_close(load_hannet(state)(x), model(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_networks(dtype):
    """Dense weights start orthogonal; groups, a single one and the authors' layout keep the type."""
    models = [HanNet(4, 12, 5, 3, dense_layers=(3,), dtype=dtype) for _ in range(2)]
    for weight in (models[0].out.weight, models[0].hidden[0].weight):
        rows = (
            weight.double() @ weight.double().mT
            if weight.shape[0] < weight.shape[1]
            else weight.double().mT @ weight.double()
        )
        torch.testing.assert_close(rows, torch.eye(len(rows), dtype=rows.dtype), rtol=0, atol=0.02)
    grouped = HanNet.grouped(models)
    single, loaded = grouped.single(1), load_hannet(authors_state(models[1]))
    x = torch.randn(9, 4, dtype=dtype)
    y = models[1](x)
    assert y.dtype == grouped.out.weight.dtype == dtype
    assert torch.equal(single(x), y)
    torch.testing.assert_close(grouped(x.expand(2, -1, -1))[1], y, rtol=0.02, atol=0.02)
    torch.testing.assert_close(loaded(x), y, rtol=0.02, atol=0.02)  # u was scaled, and rounded


@pytest.mark.parametrize("make", [lambda: HanNet(2, 10, 6, 2, dense_layers=(2, 6)), lambda: FCNet(2, 10, 3, 2)])
def test_groups_train_as_single_networks_do(make):
    singles = [make() for _ in range(3)]
    together = type(singles[0]).grouped(singles)
    x, target = torch.randn(3, 20, 2), torch.randn(3, 20, 2)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (*singles, together)]
    for _ in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((together(x) - target).square().mean((1, 2)).sum()).backward()
        for model, rows, wanted in zip(singles, x, target, strict=True):
            (model(rows) - wanted).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    for group, model in enumerate(singles):
        alone = together.single(group)
        for a, b in zip(alone.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="HanNet: width must be at least 1, got 0"):
        HanNet(2, 0, 1, 2)
    with pytest.raises(ValueError, match=r"HanNet: dense_layers must be within 2 to 5, the depth, got \[1, 6\]"):
        HanNet(2, 4, 5, 2, dense_layers=(6, 1))
    with pytest.raises(ValueError, match="FCNet: depth must be at least 1, got 0"):
        FCNet(2, 4, 0, 2)
    with pytest.raises(ValueError, match=r"FCNet\.grouped: models must be single networks of one architecture"):
        FCNet.grouped([FCNet(2, 4, 1, 2), FCNet(2, 4, 2, 2)])
    with pytest.raises(ValueError, match=r"FCNet\.grouped: models must not be empty"):
        FCNet.grouped([])


def test_orthogonality_penalty():
    model = FCNet(2, 6, 3, 2)
    by_hand = sum((m.weight.t() @ m.weight - torch.eye(6)).square().sum() for m in model.hidden[2::2])
    torch.testing.assert_close(orthogonality_penalty(model), by_hand)
    torch.testing.assert_close(orthogonality_penalty(FCNet.grouped([model, model])), by_hand.expand(2))
    assert orthogonality_penalty(HanNet(2, 6, 3, 2)) == 0


@pytest.mark.skipif(native is None, reason="minutes in plain torch")
def test_ten_thousand_layers():
    """The gradient of each row is as long in the first layer as in the last, and the loss falls."""
    stack = hanops.HanStack(64, 10_000)
    optimizer = torch.optim.SGD(stack.parameters(), lr=1e-3)
    x, target = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64).abs()
    losses = []
    for _ in range(10):
        y = stack(x)
        loss = (y - target).square().mean()
        (dy,) = torch.autograd.grad(loss, y, retain_graph=True)
        loss.backward()
        torch.testing.assert_close(x.grad.norm(dim=1), dy.norm(dim=1), rtol=1e-4, atol=0)
        optimizer.step()
        optimizer.zero_grad()
        x.grad = None
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- metrics


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("checkerboard HanNet 20x30", 19.79),
        ("checkerboard FCNet1 6x100", 1.18),
        ("checkerboard FCNet3 6x300", 0.40),
        ("elevators HanNet 20x200", 34.48),
        ("calhousing HanNet 20x200", 41.66),
    ],
)
def test_activation_ratio(name, percent):
    model = COUNTS[name][0]()
    ratio = metrics.activation_ratio(model, torch.zeros(model.sizes[0]))
    assert round(100 * ratio, 2) == percent


def test_activation_ratio_of_a_stack():
    stack = hanops.HanStack(8, 4, final_abs=False)
    assert metrics.activation_ratio(stack, torch.zeros(8)) == 24 / 64


def test_activation_ratio_counts_what_convert_replaces():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LeakyReLU())
    assert metrics.activation_ratio(model, torch.zeros(8)) == 8 / 72


def test_variability():
    n, step = 41, 0.05
    axis = torch.linspace(-1, 1, n, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    cubic = x**3 + 0 * y  # its third derivative is 6
    wanted = 36 * (n - 3) * n * step**2 / (cubic.square().sum() * step**2)
    got = metrics.variability(torch.stack([cubic, torch.ones_like(x), torch.zeros_like(x)]), step)
    torch.testing.assert_close(got, torch.stack([wanted, torch.zeros(()).double(), torch.zeros(()).double()]))
    with pytest.raises(ValueError, match="at least 4 points"):
        metrics.variability(torch.zeros(3, 3), 0.1)
    with pytest.raises(ValueError, match="variability: dims must be at least 1, got 0"):
        metrics.variability(torch.zeros(5, 5), 0.1, dims=0)


@pytest.mark.parametrize("depth", [1, 20, 3000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_stack_is_an_isometry(depth, scale):
    stack = hanops.HanStack(16, depth, dtype=torch.float64)
    with torch.no_grad():
        stack.u.mul_(scale * torch.rand(depth, 1))
        stack.b.mul_(10)
    x = torch.randn(3, 16, dtype=torch.float64)
    spectrum = metrics.jacobian_spectrum(stack, x)
    assert (spectrum - 1).abs().max() < 1e-15 * (10 + depth)
    assert metrics.lipschitz(stack, x) <= 1 + 1e-12
    near = x[:1] + 1e-9 * torch.randn(5, 16, dtype=torch.float64)
    assert metrics.lipschitz(stack, near) == pytest.approx(1, abs=1e-3)


def test_spectrum_of_a_matrix():
    linear = torch.nn.Linear(5, 3)
    spectrum = metrics.jacobian_spectrum(linear, torch.randn(2, 5))
    torch.testing.assert_close(spectrum, torch.linalg.svdvals(linear.weight.detach()).expand(2, 3))
    assert metrics.lipschitz(linear, torch.randn(50, 5)) <= spectrum.max() * (1 + 1e-5)
    with pytest.raises(ValueError, match="at least 2 different rows"):
        metrics.lipschitz(linear, torch.ones(2, 5))
