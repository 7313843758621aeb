"""Classifies images with Han-Mixers and MobileViT, and with the same networks without Han layers.

Without --data the images are a small made set: shapes in 10 classes, under noise.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from hanops.models import Mixer, mobilevit_xs, mobilevit_xxs

from . import checkpoints
from . import paper_figures as paper
from .checkpoints import Checkpoint
from .experiment import COLOURS, checkpoint, mean_and_spread, parser, save_plot, settings, spread, write
from .image_data import Augmented, Images, load, made
from .options import RefusedError, amount, natural, positive, run_program, whole
from .sweep import Recipe, rate_at

MIXERS = {  # MLP blocks and Han blocks after the stem
    "stem": (0, 0),
    "mlp2": (2, 0),
    "mlp4": (4, 0),
    "han16": (0, 16),
    "mlp1-han16": (1, 16),
    "mlp2-han16": (2, 16),
    "mlp4-han16": (4, 16),
}
MOBILEVITS = {"xxs": mobilevit_xxs, "xxs-han": mobilevit_xxs, "xs": mobilevit_xs, "xs-han": mobilevit_xs}
MILESTONES = (0.7, 0.9)  # parts of the epochs after which the learning rate falls to a fifth
TEST_ROWS = 200  # at a time


def choose(arguments: argparse.Namespace, images: Images) -> None:
    """Sets the options that were left open to the paper's, which depend on the network and the data."""
    mobile = arguments.model in MOBILEVITS
    if arguments.epochs is None:
        arguments.epochs = 300 if mobile else 600
    if arguments.batch is None:
        arguments.batch = 64 if images.name == "stl10" else 128 if mobile else 256
    if arguments.size is None:
        arguments.size = 256 if mobile and images.name != "made" else images.side
    if len(images.x) < arguments.batch:
        raise RefusedError(
            f"argument --batch: must be at most {len(images.x)}, the number of images, got {arguments.batch}"
        )


def make(arguments: argparse.Namespace, images: Images) -> nn.Module:
    """Returns a new network."""
    size = arguments.size
    if arguments.model in MOBILEVITS:
        han, stem_stride = arguments.model.endswith("han"), 2 if size > 96 else 1
        return MOBILEVITS[arguments.model](images.classes, han, stem_stride=stem_stride)
    mlp_blocks, han_blocks = MIXERS[arguments.model]
    strides = (1, 2, 2, 2) if size > 32 else (1, 2, 1, 2)  # 144 tokens of 96 x 96 pixels, 64 of 32 x 32
    return Mixer(
        images.classes,
        image_size=size,
        channels=arguments.channels,
        strides=strides,
        mlp_blocks=mlp_blocks,
        han_blocks=han_blocks,
    )


class Input(nn.Module):
    """Makes a network's input of images: standardised by the colours of the first 1,000, and enlarged.

    (n, side, side, 3) of bytes becomes (n, 3, size, size) of float32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, images: Images, size: int) -> None:
        super().__init__()
        self.size = size
        colours = images.x[:1000].reshape(-1, 3)
        self.register_buffer("mean", torch.tensor(colours.mean(0), dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(colours.std(0), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input, (n, 3, size, size)."""
        x = ((x - self.mean) / self.deviation).movedim(-1, 1)
        return x if x.shape[-1] == self.size else F.interpolate(x, self.size, mode="bilinear")


@dataclass
class Training:
    """Where the training of a network is: all that a file needs to go on with it."""

    settings: dict[str, Any]  # a checkpoint of others is refused
    model: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # of each epoch

    def save(self, path: Path) -> None:
        """Writes the state, whole or not at all."""
        checkpoints.save(
            path,
            {
                "settings": self.settings,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "seconds": self.seconds,
                "history": self.history,
            },
        )

    def load(self, file: Checkpoint, device: str) -> None:
        """Takes the state of a file where there is one; options.RefusedError where it is damaged or of another one."""
        keys = ("model", "optimizer", "seconds", "history")
        saved = file.load(self.settings, keys, device, "training")
        if saved is None:
            return
        checkpoints.check_progress(file.path, len(saved["history"]), self.settings["epochs"])
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.seconds, self.history = saved["seconds"], saved["history"]


def train(seed: int, arguments: argparse.Namespace, images: Images, file: Checkpoint) -> Training:
    """Trains a network.

    Nothing random is drawn from a state: what an epoch draws comes from the seed and the epoch's number. So a training
    that goes on from its file is the same as one that was never interrupted.

    Args:
        seed: of the start, the order of the images and their changes.
        arguments: of the program.
        images: the data.
        file: one that is written after each epoch, and that an interrupted call goes on from.
    """
    torch.manual_seed(seed)
    device = arguments.device
    model = nn.Sequential(Input(images, arguments.size), make(arguments, images)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate, weight_decay=arguments.decay)
    kept = {key: value for key, value in settings(arguments).items() if key not in ("seeds", "device", "workers")}
    state = Training(kept | {"seed": seed, "set": images.name, "data": images.checksum()}, model, optimizer)
    state.load(file, device)
    recipe = Recipe(arguments.epochs, milestones=MILESTONES)  # an epoch is an iteration here
    steps = len(images.x) // arguments.batch
    done = len(state.history)
    started, before = time.perf_counter(), state.seconds
    with tqdm(total=arguments.epochs * steps, initial=done * steps, desc=f"seed {seed}", unit="step") as bar:
        for epoch in range(done, arguments.epochs):
            for group in optimizer.param_groups:
                group["lr"] = arguments.rate * rate_at(recipe, epoch)
            order = numpy.random.default_rng((seed, epoch)).permutation(len(images.x))
            batches = torch.from_numpy(order)[: steps * arguments.batch].split(arguments.batch)
            losses = []
            model.train()
            for x, y in DataLoader(
                Augmented(images, seed, epoch), batch_size=None, sampler=batches, num_workers=arguments.workers
            ):
                with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=arguments.amp):
                    loss = F.cross_entropy(model(x.to(device)), y.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                bar.update()
            error = test_error(model, images, device)
            state.history.append({"loss": torch.stack(losses).mean().item(), "error": error})
            bar.set_postfix(error=f"{error:.2f} %")
            state.seconds = before + time.perf_counter() - started
            state.save(file.path)
    return state


@torch.no_grad()
def test_error(model: nn.Module, images: Images, device: str) -> float:
    """Returns the share of the test images, in percent, whose largest logit is that of another class."""
    model.eval()
    wrong = 0
    for x, y in zip(torch.from_numpy(images.test_x).split(TEST_ROWS), images.test_y.split(TEST_ROWS), strict=True):
        wrong += int((model(x.to(device)).argmax(-1).cpu() != y).sum())
    return 100 * wrong / len(images.test_y)


def plot(path: Path, images: Images, trainings: list[Training], title: str) -> None:
    """Draws the test error over the epochs, and images as the training shows them."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for seed, training in enumerate(trainings):
        errors = [entry["error"] for entry in training.history]
        epochs = range(1, len(errors) + 1)
        left.plot(epochs, errors, color=COLOURS[seed % len(COLOURS)], linewidth=1.2, label=f"seed {seed}")
    left.set(title="top-1 error of the test images", xlabel="epoch", ylabel="%")
    left.set_ylim(bottom=0)
    left.legend()
    rows, columns = 4, 5
    shown, _ = Augmented(images, seed=0, epoch=0)[torch.arange(rows * columns) % len(images.x)]
    framed = numpy.pad(shown.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    mosaic = framed.reshape(rows, columns, *framed.shape[1:]).transpose(0, 2, 1, 3, 4)
    right.imshow(mosaic.reshape(rows * framed.shape[1], -1, 3))
    right.set(title="images of the first epoch", xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    figure.suptitle(title)
    save_plot(figure, path)


def main() -> None:
    """Trains one network with each seed."""
    options = parser(__doc__)
    options.add_argument(
        "--model",
        choices=[*MIXERS, *MOBILEVITS],
        default="mlp2-han16",
        help="a stem with blocks of each kind, or MobileViT XXS or XS with MLP or Han blocks",
    )
    options.add_argument("--data", type=Path, help="folder with the files of CIFAR-10, CIFAR-100 or STL-10")
    options.add_argument("--made", type=natural, default=3000, help="training images of the made set")
    options.add_argument("--channels", type=natural, default=512, help="of the mixers' tokens")
    options.add_argument(
        "--size",
        type=natural,
        help="side to which images are enlarged: the authors' 256 for MobileViT on --data, else none",
    )
    options.add_argument("--epochs", type=natural, help="600, or 300 for MobileViT")
    options.add_argument("--batch", type=natural, help="256, or 128 for MobileViT, and 64 of STL-10")
    options.add_argument("--rate", type=positive, default=0.001, help="initial learning rate of AdamW")
    options.add_argument("--decay", type=amount, default=0.1, help="weight decay")
    options.add_argument("--amp", action="store_true", help="train in bfloat16, by autocast")
    options.add_argument("--workers", type=whole(0), default=0, help="processes that prepare images")
    arguments = options.parse_args()
    images = load(arguments.data) if arguments.data else made(arguments.made)
    choose(arguments, images)
    name = f"images-{images.name}-{arguments.model}"
    trainings = [
        train(seed, arguments, images, checkpoint(arguments, f"{name}-seed{seed}")) for seed in range(arguments.seeds)
    ]
    best = [min(entry["error"] for entry in training.history) for training in trainings]
    last = [training.history[-1]["error"] for training in trainings]
    seconds = [training.seconds for training in trainings]
    parameters = sum(p.numel() for p in trainings[0].model.parameters())
    result = {
        "settings": settings(arguments),
        "data set": images.name,
        "images": {"train": len(images.x), "test": len(images.test_x), "side": images.side, "classes": images.classes},
        "model": arguments.model,
        "parameters": parameters,
        "epochs": arguments.epochs,
        "seconds": sum(seconds),
        "seconds of an epoch": sum(seconds) / (arguments.epochs * arguments.seeds),
        "top-1 error, best": best,
        "top-1 error, best, mean and spread": mean_and_spread(best),
        "top-1 error, last": last,
        "top-1 error, last, mean and spread": mean_and_spread(last),
    }
    write(arguments.out / f"{name}.json", result)
    title = {**paper.MIXERS, **paper.MOBILEVITS}[arguments.model][0]
    line = f"{title}, {parameters:,} parameters, {images.name} images, {arguments.seeds} seeds: "
    line += f"{spread(mean_and_spread(best))} % top-1 error (at the last epoch {mean_and_spread(last)[0]:.2f})"
    print(f"{line}; {sum(seconds):.0f} s")
    plot(arguments.out / f"{name}.png", images, trainings, line)


if __name__ == "__main__":
    run_program(main)
