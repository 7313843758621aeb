"""Han-Mixers: a convolution stem, MLP-Mixer blocks, and Han blocks that mix tokens and channels in their place."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from hanops.models.layers import start_orthogonal
from hanops.modules import HanStack


class ConvStem(nn.Sequential):
    """Convolutions 3x3, each with BatchNorm and ReLU and twice as wide as the one before, then one 1x1.

    Images of shape (N, 3, H, W) become (N, channels, H / s, W / s), where s is the product of the strides.

    Args:
        channels: width of the last 3x3 and of the 1x1 convolution; 512 makes widths of 64, 128, 256, 512 and 512.
        strides: of the 3x3 convolutions.

    Source: Yu and Zhang, arXiv 2106.04088, the stem of the image experiments. The counts of parameters that the paper
    prints leave open whether convolutions have a bias; here they do, as in the authors' code.
    """

    def __init__(self, channels: int = 512, strides: Sequence[int] = (1, 2, 1, 2)) -> None:
        widths = [3, *(channels >> halvings for halvings in reversed(range(len(strides))))]
        layers: list[nn.Module] = []
        for narrow, wide, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [nn.Conv2d(narrow, wide, 3, stride, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(channels, channels, 1))


class MLPMixerBlock(nn.Module):
    """One MLP-Mixer block, x <- x + token MLP(norm(x)), then x <- x + channel MLP(norm(x)).

    Each MLP is linear, GELU, linear, and no wider inside than its input: 2 (T^2 + C^2) + 2 T + 6 C parameters.
    Input and output are (N, T, C).

    Args:
        tokens: T.
        channels: C.

    Source: Tolstikhin et al., arXiv 2105.01601, Figure 1, with the widths of arXiv 2106.04088.
    """

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(channels)
        self.token_mlp = _mlp(tokens)
        self.channel_norm = nn.LayerNorm(channels)
        self.channel_mlp = _mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mixed x, (N, T, C)."""
        x = x + self.token_mlp(self.token_norm(x).mT).mT
        return x + self.channel_mlp(self.channel_norm(x))


class HanMixerBlock(nn.Sequential):
    """One Han-Mixer block: two Han layers over the tokens, then two over the channels, without norm or skip.

    It has 4 (T + C) parameters. Input and output are (N, T, C).

    Args:
        tokens: T.
        channels: C.

    Source: Yu and Zhang, arXiv 2106.04088, the Han-Mixer of the image experiments.
    """

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__(HanStack(tokens, 2, dim=-2), HanStack(channels, 2))


class Mixer(nn.Module):
    """A convolution stem, MLP-Mixer blocks, Han-Mixer blocks, and a linear classifier of the tokens' mean.

    Tokens are the pixels of the stem's output, T = (image_size / product of strides)^2. Weights of convolutions and
    linear layers start orthogonal, as in the authors' code.

    Args:
        num_classes: length of the output.
        image_size: height and width of the images in pixels.
        channels: C, the width of the stem's output and of all blocks.
        strides: of the stem's 3x3 convolutions.
        mlp_blocks: number of MLP-Mixer blocks; they come first.
        han_blocks: number of Han-Mixer blocks.

    Raises:
        ValueError: where image_size is no multiple of the product of the strides.

    Source: Yu and Zhang, arXiv 2106.04088, the image experiments. The counts of parameters that the paper prints leave
    open whether there is a LayerNorm before the mean; here there is one, as in the authors' code.

    >>> import torch
    >>> from hanops.models.mixer import Mixer
    >>> model = Mixer(10, channels=64, mlp_blocks=1, han_blocks=4)
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int = 32,
        channels: int = 512,
        strides: Sequence[int] = (1, 2, 1, 2),
        mlp_blocks: int = 0,
        han_blocks: int = 0,
    ) -> None:
        super().__init__()
        side, remainder = divmod(image_size, math.prod(strides))
        if remainder:
            raise ValueError(f"Mixer: image_size must be a multiple of {math.prod(strides)}, got {image_size}")
        self.stem = ConvStem(channels, strides)
        self.mlp_blocks = nn.Sequential(*(MLPMixerBlock(side**2, channels) for _ in range(mlp_blocks)))
        self.han_blocks = nn.Sequential(*(HanMixerBlock(side**2, channels) for _ in range(han_blocks)))
        self.norm = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                start_orthogonal(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits, (N, num_classes), of images, (N, 3, image_size, image_size)."""
        tokens = self.stem(images).flatten(2).mT  # [N, T, C]
        tokens = self.han_blocks(self.mlp_blocks(tokens))
        return self.classifier(self.norm(tokens).mean(1))


def mixer_cifar(num_classes: int, mlp_blocks: int = 0, han_blocks: int = 0) -> Mixer:
    """Returns the paper's Mixer for CIFAR: 32x32 pixels, 64 tokens of 512 channels. Arguments: as of `Mixer`."""
    return Mixer(num_classes, mlp_blocks=mlp_blocks, han_blocks=han_blocks)


def mixer_stl10(num_classes: int, mlp_blocks: int = 0, han_blocks: int = 0) -> Mixer:
    """Returns the paper's Mixer for STL10: 96x96 pixels, 144 tokens of 512 channels. Arguments: as of `Mixer`."""
    return Mixer(num_classes, image_size=96, strides=(1, 2, 2, 2), mlp_blocks=mlp_blocks, han_blocks=han_blocks)


def mixer_imagenet64(num_classes: int, mlp_blocks: int = 0, han_blocks: int = 0) -> Mixer:
    """Returns the paper's Mixer for ImageNet-64: 64x64 pixels, 64 tokens of 1024 channels. Arguments: as of `Mixer`.

    The strides follow from the number of tokens, which follows from the counts of parameters that the paper prints.
    """
    return Mixer(
        num_classes,
        image_size=64,
        channels=1024,
        strides=(1, 2, 2, 2),
        mlp_blocks=mlp_blocks,
        han_blocks=han_blocks,
    )


def _mlp(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, features))
