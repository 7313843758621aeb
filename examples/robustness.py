"""Attacks what digits.py trains: HanNet, and a dense network trained as usual, on attacked images, and by TRADES."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from foolbox.attacks import L2PGD, LinfPGD
from foolbox.attacks.base import Attack
from foolbox.attacks.carlini_wagner import L2CarliniWagnerAttack
from foolbox.models.pytorch import PyTorchModel
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hanops.models import Network

from . import checkpoints
from .digits import dense, digits_options, han, learn, prepared
from .experiment import COLOURS, checkpoint, mean_and_spread, save_plot, settings, write
from .options import amount, natural, positive, run_program
from .sweep import Data, class_accuracy, cross_entropy

REACH = 2.5  # how far all steps of an attack go together, in radii
FIRST_MOVE = 0.001  # of TRADES: at the image itself the gradient is 0
AT_A_TIME = 1_000  # images of each seed
DECAYS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
CLEAN = 90.0  # accuracy without an attack, in percent, that a weight decay must leave

TITLES = {
    "hannet": "HanNet",
    "fcnet": "FCNet",
    "fcnet-trades": "FCNet, TRADES",
    "fcnet-adversarial": "FCNet, adversarial training",
}
KINDS = {  # of attacks, and the name of their number
    "linf": "PGD, radius in the largest pixel",
    "l2": "PGD, radius in the L2 norm",
    "cw": "Carlini-Wagner (CW), constant c",
}


def ascend(objective: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, radius: float, steps: int) -> Tensor:
    """Returns images of large objective, in [0, 1] and no pixel farther than the radius from x: PGD.

    Args:
        objective: of images, a figure for each group.
        x, start: (groups, n, pixels), the images and where to begin.
        radius: the largest change of a pixel.
        steps: of the signs of the gradient; together they reach 2.5 radii.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083, Section 2.1.
    """
    low, high = (x - radius).clamp(min=0), (x + radius).clamp(max=1)
    moved = start.clamp(low, high)
    for _ in range(steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(objective(moved).sum(), moved)
        moved = (moved.detach() + REACH * radius / steps * gradient.sign()).clamp(low, high)
    return moved


def random_like(draw: Callable[..., Tensor], x: Tensor) -> Tensor:
    """Returns random numbers of the shape of x, the same on any device."""
    return draw(x.shape, dtype=x.dtype).to(x.device)


@dataclass(frozen=True)
class Adversarial:
    """The cross entropy of attacked images.

    Source: Madry et al., arXiv 1706.06083, equation 2.1.
    """

    radius: float
    steps: int

    def __call__(self, model: Network, x: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of each group, of x (groups, n, pixels) and target (groups, n)."""
        start = x + self.radius * (2 * random_like(torch.rand, x) - 1)
        attacked = ascend(lambda moved: cross_entropy(model(moved), target), x, start, self.radius, self.steps)
        return cross_entropy(model(attacked), target)


@dataclass(frozen=True)
class Trades:
    """The cross entropy, and beta times how far an attack within the radius moves the classes' probabilities.

    Source: Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, arXiv 1901.08573,
    equation 5 and Algorithm 1.
    """

    radius: float
    steps: int
    beta: float

    def __call__(self, model: Network, x: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of each group, of x (groups, n, pixels) and target (groups, n)."""
        with torch.no_grad():
            still = model(x)
        start = x + FIRST_MOVE * random_like(torch.randn, x)
        attacked = ascend(lambda moved: divergence(still, model(moved)), x, start, self.radius, self.steps)
        logits = model(x)
        return cross_entropy(logits, target) + self.beta * divergence(logits, model(attacked))


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Returns the mean of KL(softmax(logits) | softmax(others)) of each group, of logits (groups, n, classes)."""
    p, q = F.log_softmax(logits, -1), F.log_softmax(others, -1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean(1)


class SideBySide(nn.Module):
    """A grouped model as one that foolbox attacks: the rows of all groups one after another."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (groups * n, classes) of images (groups * n, pixels)."""
        return self.model(x.unflatten(0, (self.model.groups, -1))).flatten(0, 1)


def attacked_accuracy(model: Network, attack: Attack, radius: float | None, x: Tensor, label: Tensor) -> list[float]:
    """Returns the share of images, in percent, that an attack leaves rightly classified, for each group.

    Args:
        model: grouped, its parameters without a gradient.
        attack: of foolbox.
        radius: what the attack may change; None for an attack of least change, which may go as far as it has to.
        x: (n, pixels) in [0, 1]. label: (n).
    """
    target = PyTorchModel(SideBySide(model).eval(), bounds=(0, 1), device=x.device)
    groups = model.groups or 1
    right = []
    for images, digits in zip(x.split(AT_A_TIME), label.split(AT_A_TIME), strict=True):
        _, attacked, success = attack(target, images.repeat(groups, 1), digits.repeat(groups), epsilons=radius)
        # Where Carlini-Wagner finds nothing, foolbox returns a black image, and judges that.
        found = success & attacked.any(1)
        right.append(~found.view(groups, -1))
    return (100 * torch.cat(right, 1).double().mean(1)).tolist()


def attacks(arguments: argparse.Namespace) -> Iterator[tuple[str, Attack, float | None]]:
    """Yields the name of each attack, as in the JSON, the attack, and its radius."""
    steps = {"rel_stepsize": REACH / arguments.pgd_steps, "steps": arguments.pgd_steps}
    for radius in arguments.linf:
        yield f"linf {radius:g}", LinfPGD(**steps), radius
    for radius in arguments.l2:
        yield f"l2 {radius:g}", L2PGD(**steps), radius
    for c in arguments.cw:
        # All steps: to stop early would look at all images together.
        options: dict[str, Any] = {"binary_search_steps": 1, "steps": arguments.cw_steps, "abort_early": False}
        yield f"cw {c:g}", L2CarliniWagnerAttack(initial_const=c, **options), None


def plot(path: Path, networks: dict[str, dict[str, Any]], title: str) -> None:
    """Draws accuracy against the radius of PGD in each norm, and against the constant of Carlini-Wagner."""
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    for axes, (kind, label) in zip(panels, KINDS.items(), strict=True):
        for colour, (name, result) in zip(COLOURS, networks.items(), strict=False):
            points = [
                (float(attack.split()[-1]) if attack != "clean" else 0.0, *figures["mean and spread"])
                for attack, figures in result["accuracy"].items()
                if attack == "clean" or attack.split()[0] == kind
            ]
            axes.errorbar(*zip(*sorted(points), strict=True), marker="o", capsize=3, color=colour, label=TITLES[name])
        axes.set(xlabel=label, ylim=(-2, 100))
    panels[0].set(ylabel="accuracy, %")
    panels[0].legend(fontsize="small")
    figure.suptitle(title)
    save_plot(figure, path)


class Finished:
    """The figures of the attacks that are done, kept in a file for an interrupted run to go on.

    Args:
        file: where they are.
        about: what the figures depend on.

    Raises:
        RefusedError: where the file is damaged, or about something else.
    """

    def __init__(self, file: checkpoints.Checkpoint, about: dict[str, Any]) -> None:
        self.path, self.about = file.path, about
        saved = file.load(about, ("figures",), "cpu", "set of attacks")
        self.figures: dict[str, list[float]] = saved["figures"] if saved else {}

    def add(self, key: str, figures: list[float]) -> None:
        """Keeps figures, and writes the file, whole or not at all."""
        self.figures[key] = figures
        checkpoints.save(self.path, {"settings": self.about, "figures": self.figures})


def robustness_options() -> argparse.ArgumentParser:
    """Returns a parser with the options of this program."""
    options = digits_options(__doc__)
    options.add_argument("--depth", type=natural, default=20, help="Han layers")
    decays = f"weight decays; as in the paper the largest that leaves {CLEAN} % of the images right is attacked"
    options.add_argument("--decays", type=amount, nargs="+", default=list(DECAYS), help=decays)
    options.add_argument(
        "--images", type=natural, default=1_000, help="test images to attack, or all where there are less"
    )
    linf = "radii of PGD, largest pixel; our choice, as are --l2 and --radius: the paper's text prints none"
    options.add_argument("--linf", type=positive, nargs="+", default=[0.05, 0.1, 0.2], help=linf)
    options.add_argument("--l2", type=positive, nargs="+", default=[0.5, 1.0, 2.0], help="radii of PGD, L2 norm")
    cw = "constants of Carlini-Wagner in L2; an image is lost where a step finds another class, however far it is"
    cw += "; without it 1, 3 and 5 on MNIST, and on scikit-learn's digits, where those leave nothing, 0.3, 0.6 and 1"
    options.add_argument("--cw", type=positive, nargs="+", help=cw)
    options.add_argument("--pgd-steps", type=natural, default=30, help="steps of PGD")
    options.add_argument("--cw-steps", type=natural, default=1_000, help="steps of Carlini-Wagner")
    options.add_argument("--radius", type=positive, default=0.1, help="of the attacks in training, largest pixel")
    options.add_argument("--steps", type=natural, default=10, help="of the attacks in training")
    options.add_argument("--beta", type=amount, default=6.0, help="of TRADES")
    return options


def tuned(
    name: str, make: Callable[[], Network], arguments: argparse.Namespace, data: Data, x: Tensor, label: Tensor
) -> tuple[Network, dict[str, Any], dict[float, list[float]]]:
    """Trains a network at each weight decay; the largest that leaves enough images right is taken.

    Args:
        name: of the network in TITLES.
        make: makes it.
        arguments: of the program; its `decay` is set to the one taken.
        data: as `prepared` returns it.
        x, label: the images that are attacked, (n, pixels), and their classes (n).

    Returns:
        The trained network, the figures of its training, and the accuracy in percent of each decay and seed.
    """
    objectives: dict[str, Adversarial | Trades] = {
        "fcnet-trades": Trades(arguments.radius, arguments.steps, arguments.beta),
        "fcnet-adversarial": Adversarial(arguments.radius, arguments.steps),
    }
    found = {}
    for decay in sorted(arguments.decays):
        arguments.decay = decay
        state, result = learn(f"robustness-{name}-{decay:g}", make, arguments, data, objectives.get(name))
        model = state.model.requires_grad_(False)
        right = class_accuracy(model(x.expand(arguments.seeds, *x.shape)), label.expand(arguments.seeds, -1))
        found[decay] = (model, result, right.tolist())
    clean = {decay: right for decay, (_, _, right) in found.items()}
    enough = [decay for decay, right in clean.items() if mean_and_spread(right)[0] >= CLEAN]
    arguments.decay = max(enough) if enough else max(clean, key=lambda decay: sum(clean[decay]))
    return found[arguments.decay][0], found[arguments.decay][1], clean


def main() -> None:
    """Trains all seeds of each network, and attacks them."""
    arguments = robustness_options().parse_args()
    if arguments.cw is None:
        arguments.cw = [1.0, 3.0, 5.0] if arguments.data else [0.3, 0.6, 1.0]
    images, data = prepared(arguments)
    width = images.width
    x, label = data.test_x[0, : arguments.images], data.test_target[0, : arguments.images]
    print(f"{images.name}: {arguments.train:,} images train, {len(x):,} of the others are attacked")
    about = {"data": images.name, "images attacked": len(x), "unit": "%"}
    same = {key: value for key, value in settings(arguments).items() if key not in KINDS}  # attacks may be added
    same["checksum"] = checkpoints.checksum(data.x, data.target, x, label)
    finished = Finished(checkpoint(arguments, "robustness-attacks"), about | same)
    told_settings = settings(arguments)
    del told_settings["decay"]
    networks: dict[str, dict[str, Any]] = {}
    for name, title in TITLES.items():
        make = han(width, arguments.depth) if name == "hannet" else dense(width)
        model, result, clean = tuned(name, make, arguments, data, x, label)
        accuracy = {"clean": clean[arguments.decay]}
        for attack_name, attack, radius in tqdm(list(attacks(arguments)), unit="attack"):
            key = f"{name}, {attack_name}"
            if key not in finished.figures:
                torch.manual_seed(0)  # where PGD starts
                finished.add(key, attacked_accuracy(model, attack, radius, x, label))
            accuracy[attack_name] = finished.figures[key]
        figures = {
            attack_name: {"each seed": each, "mean and spread": mean_and_spread(each)}
            for attack_name, each in accuracy.items()
        }
        networks[name] = {
            "parameters": result["parameters"],
            "seconds": result["seconds"],
            "decay": arguments.decay,
            "clean accuracy of each decay": {f"{decay:g}": mean_and_spread(right) for decay, right in clean.items()},
            "accuracy": figures,
        }
        told = ", ".join(f"{key} {value['mean and spread'][0]:.1f}" for key, value in figures.items())
        line = (
            f"{title}, {result['parameters']:,} parameters, {arguments.seeds} seeds, weight decay {arguments.decay:g}"
        )
        print(f"{line}, % right: {told}")
    about["accuracy to leave, %"] = CLEAN
    write(arguments.out / "robustness.json", {"settings": told_settings, **about, "networks": networks})
    plot(arguments.out / "robustness.png", networks, f"{images.name}, {len(x):,} test images under attack")


if __name__ == "__main__":
    run_program(main)
