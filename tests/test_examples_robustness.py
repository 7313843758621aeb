"""Accuracy under attack: the losses of adversarial training, the attacks, what is kept of them, and the program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hanops.models import FCNet, Network

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("foolbox")
robustness = pytest.importorskip("examples.robustness")

from foolbox.attacks import L2PGD, L2CarliniWagnerAttack, LinfPGD  # noqa: E402

from examples import checkpoints  # noqa: E402
from examples.sweep import Data, Recipe, Run, class_accuracy, cross_entropy, train  # noqa: E402

ROOT = Path(__file__).parent.parent


class Linear(Network):
    """Classes 0 and 1 by a dense layer alone, whose attacks are known exactly: class 0 has the logit w.x + bias."""

    def __init__(self, weights: torch.Tensor, bias: float = 0.0) -> None:
        """`weights` (groups, pixels)."""
        groups, pixels = weights.shape
        super().__init__([], (pixels, pixels, 1, 2), groups, None, weights.dtype)
        with torch.no_grad():
            self.out.weight.copy_(torch.stack([weights, torch.zeros_like(weights)], 1))
            self.out.bias.copy_(torch.tensor([bias, 0.0]))


def small(groups: int = 2) -> Network:
    torch.manual_seed(1)
    return FCNet.grouped([FCNet(6, 16, 1, 10) for _ in range(groups)])


def rows(groups: int = 2, n: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(groups, n, 6, generator=generator), torch.randint(10, (groups, n), generator=generator)


def test_ascend_stays_near_and_in_the_images():
    x, label = rows()
    model = small()
    start = x + 5 * torch.randn_like(x)
    moved = robustness.ascend(lambda y: cross_entropy(model(y), label), x, start, 0.3, 8)
    assert (moved - x).abs().max() <= 0.3 + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad
    assert (cross_entropy(model(moved), label) > cross_entropy(model(x), label) + 0.1).all()


def test_adversarial_training_of_a_linear_network():
    """The worst image within the radius moves the logit by radius |w|_1."""
    w = torch.randn(2, 6)
    model, x = Linear(w), 0.5 + 0.2 * torch.rand(2, 9, 6)
    label = torch.zeros(2, 9, dtype=torch.int64)
    margin = torch.einsum("gp,gnp->gn", w, x)
    for radius in (0.0, 0.1, 0.25):
        loss = robustness.Adversarial(radius, 10)(model, x, label)
        worst = margin - radius * w.abs().sum(1, keepdim=True)
        torch.testing.assert_close(loss, nn.functional.softplus(-worst).mean(1))


def test_trades_is_its_formula():
    """CE + beta KL(p(x) | p(x')) of x' after two steps that are written out here, in value and gradient."""
    model, (x, label) = small(), rows()
    radius, beta = 0.2, 6.0

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.softmax(-1) * (a.softmax(-1) / b.softmax(-1)).log()).sum(-1).mean(1)

    torch.manual_seed(3)
    near = (x + 0.001 * torch.randn(x.shape)).clamp(0, 1)
    for _ in range(2):
        near.requires_grad_()
        (slope,) = torch.autograd.grad(kl(model(x), model(near)).sum(), near)
        near = (near.detach() + 2.5 * radius / 2 * slope.sign()).clamp(x - radius, x + radius).clamp(0, 1)
    probability = model(x).softmax(-1).gather(-1, label.unsqueeze(-1)).squeeze(-1)
    expected = -probability.log().mean(1) + beta * kl(model(x), model(near))
    torch.manual_seed(3)
    loss = robustness.Trades(radius, 2, beta)(model, x, label)
    torch.testing.assert_close(loss, expected)
    assert (loss > robustness.Trades(radius, 2, 0.0)(model, x, label) + 0.01).all()
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("attack", "norm"), [(LinfPGD, 1), (L2PGD, 2)])
def test_pgd_of_a_linear_network(attack, norm):
    """An image is lost where its margin is below the radius times the dual norm of w, and no pixel goes too far."""
    w = torch.randn(2, 6)
    w -= w.mean(1, keepdim=True)
    model = Linear(w).requires_grad_(False)
    x = 0.5 + 0.1 * torch.rand(40, 6)  # logits of both signs
    logit = torch.einsum("gp,np->gn", w, x)
    label = torch.zeros(40, dtype=torch.int64)
    before = 200.0  # of both groups
    for radius in (0.001, 0.01, 0.05):
        reach = radius * w.norm(p=norm, dim=1, keepdim=True)
        sure = (logit - reach).abs() > 1e-3
        kept = (logit > reach).double()
        accuracy = robustness.attacked_accuracy(model, attack(rel_stepsize=2.5 / 30, steps=30), radius, x, label)
        slack = 100 * (~sure).double().mean(1)
        assert ((torch.tensor(accuracy) - 100 * kept.mean(1)).abs() <= slack + 1e-9).all()
        assert sum(accuracy) < before
        before = sum(accuracy)
        target = robustness.PyTorchModel(robustness.SideBySide(model).eval(), bounds=(0, 1), device="cpu")
        _, moved, _ = attack(rel_stepsize=0.1, steps=5)(target, x.repeat(2, 1), label.repeat(2), epsilons=radius)
        p = torch.inf if attack is LinfPGD else 2
        far = (moved - x.repeat(2, 1)).norm(p=p, dim=1)
        assert far.max() <= radius + 1e-6
        assert far.max() > 0.9 * radius


def carlini_wagner(c: float, steps: int = 200) -> L2CarliniWagnerAttack:
    return L2CarliniWagnerAttack(binary_search_steps=1, initial_const=c, steps=steps, abort_early=False)


def test_carlini_wagner_of_a_linear_network():
    """|change|^2 + c (margin - w.change) is least at c w / 2: enough for margins below c |w|^2 / 2."""
    w = torch.full((1, 4), 0.5)  # |w|^2 = 1
    model = Linear(w, bias=-0.6).requires_grad_(False)
    label = torch.zeros(2, dtype=torch.int64)
    x = torch.tensor([[0.4] * 4, [0.5] * 4])  # margins 0.2 and 0.4
    for c, accuracy in ((0.2, 100), (0.6, 50), (1.2, 0)):
        assert robustness.attacked_accuracy(model, carlini_wagner(c), None, x, label) == [accuracy]


def test_carlini_wagner_that_finds_nothing():
    """foolbox then returns a black image, which here is of the other class: that is no success."""
    w = torch.full((1, 4), 100.0)
    model = Linear(w, bias=-1.0).requires_grad_(False)
    x, label = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    assert model(torch.zeros(1, 1, 4)).argmax() == 1
    assert robustness.attacked_accuracy(model, carlini_wagner(1e-6, 3), None, x, label) == [100]


def test_groups_are_attacked_as_single_networks(monkeypatch):
    model = small(3).requires_grad_(False)
    x, _ = rows(1, 20)
    label = model.single(0)(x[0]).argmax(-1)
    together = robustness.attacked_accuracy(model, carlini_wagner(0.05, 30), None, x[0], label)
    monkeypatch.setattr(robustness, "AT_A_TIME", 7)
    for group, accuracy in enumerate(together):
        single = type(model).grouped([model.single(group)]).requires_grad_(False)
        assert robustness.attacked_accuracy(single, carlini_wagner(0.05, 30), None, x[0], label) == [accuracy]
    assert 0 < together[0] < 100


def test_an_interrupted_training_goes_on_with_its_random_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.sweep.SAVE_SECONDS", 0.0)
    runs = [Run(0, 0.01), Run(1, 0.01)]
    data = Data(*rows(2, 40), *rows(2, 10))
    options = {"batch": 8, "epochs": True, "optimizer": "adam", "every": 5, "loss": cross_entropy}
    recipe = Recipe(20, **options, objective=robustness.Trades(0.1, 2, 6.0))
    calls = 0

    def interrupted(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == 5:  # two calls for each evaluation
            raise KeyboardInterrupt
        return class_accuracy(outputs, targets)

    def make():
        return FCNet(6, 16, 1, 10)

    whole = train(make, runs, data, recipe, class_accuracy)
    file = checkpoints.Checkpoint(tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        train(make, runs, data, recipe, interrupted, file)
    torch.rand(3)
    resumed = train(make, runs, data, recipe, class_accuracy, file)
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other = Recipe(20, **options, objective=robustness.Trades(0.1, 2, 5.0))
    with pytest.raises(ValueError, match="is of another sweep"):
        train(make, runs, data, other, class_accuracy, file)


def test_finished(tmp_path):
    path = checkpoints.Checkpoint(tmp_path / "attacks.pt")
    robustness.Finished(path, {"seeds": 1}).add("a", [1.0])
    assert robustness.Finished(path, {"seeds": 1}).figures == {"a": [1.0]}
    with pytest.raises(ValueError, match="is of another set of attacks"):
        robustness.Finished(path, {"seeds": 2})


def test_robustness(tmp_path, monkeypatch):
    command = [sys.executable, "-m", "examples.robustness", "--seeds", "2", "--epochs", "2", "--depth", "3"]
    command += ["--images", "20", "--pgd-steps", "3", "--cw-steps", "4", "--steps", "2", "--cw", "1"]
    command += ["--decays", "0.001", "0.01"]
    command += ["--out", str(tmp_path)]
    done = subprocess.run([*command, "--linf", "0.1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1,000 images train, 20 of the others are attacked" in done.stdout
    result = json.loads((tmp_path / "robustness.json").read_text())
    assert result["images attacked"] == 20
    assert list(result["networks"]) == ["hannet", "fcnet", "fcnet-trades", "fcnet-adversarial"]
    for network in result["networks"].values():
        assert list(network["accuracy"]) == ["clean", "linf 0.1", "l2 0.5", "l2 1", "l2 2", "cw 1"]
        for figures in network["accuracy"].values():
            assert len(figures["each seed"]) == 2
            assert figures["mean and spread"][0] == pytest.approx(sum(figures["each seed"]) / 2)
    assert result["networks"]["hannet"]["parameters"] == 3 * 128 + 650
    assert (tmp_path / "robustness.png").stat().st_size > 10_000

    # With one more radius only that is attacked: what is kept of the others stands.
    path = tmp_path / "robustness-attacks.pt"
    kept = torch.load(path)
    kept["figures"]["fcnet, cw 1"] = [12.5, 12.5]
    checkpoints.save(path, kept)
    monkeypatch.setattr(sys, "argv", [robustness.__file__, *command[3:], "--linf", "0.1", "0.2"])
    robustness.main()
    again = json.loads((tmp_path / "robustness.json").read_text())["networks"]
    assert again["fcnet"]["accuracy"]["cw 1"]["each seed"] == [12.5, 12.5]
    assert again["hannet"]["accuracy"]["linf 0.1"] == result["networks"]["hannet"]["accuracy"]["linf 0.1"]
    assert again["hannet"]["accuracy"]["linf 0.2"]["each seed"]
