"""MobileViT XXS and XS for small images, with MLP or Han blocks in their transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hanops.modules import HanStack

PATCH = 2  # pixels, height and width
HEADS, HEAD_FEATURES = 4, 8
DEPTHS = (2, 4, 3)  # transformer layers of the three MobileViT blocks
MLP_RATIOS = (2, 4, 4)  # width inside of their MLPs, in widths of the transformer


class InvertedResidual(nn.Sequential):
    """MobileNetV2's block: 1x1 convolution to more channels, 3x3 on each channel, 1x1 back, and a skip where it fits.

    (N, in_channels, H, W) becomes (N, out_channels, H / stride, W / stride).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        expansion: channels inside over in_channels.
        stride: of the 3x3 convolution.

    Source: Mehta and Rastegari, arXiv 2110.02178, the MV2 blocks of Figure 1b.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int = 1) -> None:
        hidden = expansion * in_channels
        super().__init__(
            _conv(in_channels, hidden),
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, (N, out_channels, H / stride, W / stride)."""
        y = super().forward(x)
        return x + y if self.skip else y


class Attention(nn.Module):
    """Self-attention of 4 heads of 8 features; input and output are (N, tokens, features).

    Args:
        features: length of a token.

    Source: Mehta and Rastegari, arXiv 2110.02178, Section 3.1; the heads' size fits the exact counts of parameters.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_FEATURES
        self.query_key_value = nn.Linear(features, 3 * inner, bias=False)
        self.out = nn.Linear(inner, features)

    def forward(self, x: Tensor) -> Tensor:
        """Returns each token's mean of all tokens' values, (N, tokens, features)."""
        heads = self.query_key_value(x).unflatten(-1, (3, HEADS, HEAD_FEATURES))  # [N, tokens, 3, heads, features]
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """x <- x + attention(norm(x)), then x <- x + MLP(norm(x)), or with Han layers x <- H(|H(x)|).

    H reflects and adds a bias. The Han form has 4 * features parameters, and neither norm nor skip: the exact counts
    of parameters leave no room for the norm, and the authors' code has no skip.

    Args:
        features: length of a token; input and output are (N, tokens, features).
        hidden: width inside of the MLP.
        han: True puts the Han form in place of the MLP.

    Source: Mehta and Rastegari, arXiv 2110.02178; the Han form is of Yu and Zhang, arXiv 2106.04088.
    """

    def __init__(self, features: int, hidden: int, han: bool = False) -> None:
        super().__init__()
        self.han = han
        self.norm = nn.LayerNorm(features)
        self.attention = Attention(features)
        self.mlp = (
            HanStack(features, 2, final_abs=False)
            if han
            else nn.Sequential(
                nn.LayerNorm(features), nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, features)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer's output, (N, tokens, features)."""
        x = x + self.attention(self.norm(x))
        return self.mlp(x) if self.han else x + self.mlp(x)


class MobileViTBlock(nn.Module):
    """Convolutions for what is near, and a transformer for what is far, fused with the input by a last convolution.

    A pixel attends to the pixels at its own place in the other patches of 2x2.

    Input and output are (N, channels, H, W); H and W are multiples of 2, the patches' size.

    Args:
        channels: of the input and the output.
        features: width of the transformer.
        depth: number of its layers.
        hidden: width inside of its MLPs.
        han: True puts Han layers in place of the MLPs.

    Source: Mehta and Rastegari, arXiv 2110.02178, Section 3.1 and Figure 1b.
    """

    def __init__(self, channels: int, features: int, depth: int, hidden: int, han: bool = False) -> None:
        super().__init__()
        self.local = nn.Sequential(_conv(channels, channels, 3), _conv(channels, features))
        self.transformer = nn.Sequential(*(TransformerLayer(features, hidden, han) for _ in range(depth)))
        self.project = _conv(features, channels)
        self.fuse = _conv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, (N, channels, H, W)."""
        y = self.local(x)
        y = from_patches(self.transformer(to_patches(y)), y.shape[2] // PATCH)
        return self.fuse(torch.cat((self.project(y), x), 1))


class MobileViT(nn.Module):
    """MobileViT: a convolution, inverted residuals, three MobileViT blocks, and a linear classifier of the mean pixel.

    Args:
        num_classes: length of the output.
        widths: channels after the first convolution, and after each of the five stages that follow.
        features: width of the transformers of the last three stages.
        expansion: of the inverted residuals.
        han: True puts Han layers in place of the transformers' MLPs.
        stem_stride: stride of the first convolution. 1 takes images whose sides are multiples of 32 pixels, such as
            those of CIFAR (32) and STL10 (96). 2 is the paper's, for multiples of 64: the authors' code enlarges all
            images to 256x256.

    Raises:
        ValueError: in the forward, for images of other sizes.

    Source: Mehta and Rastegari, arXiv 2110.02178, Table 4; Yu and Zhang, arXiv 2106.04088. The classifier without a
    bias, the depths 2, 4, 3 and the MLPs' ratios 2, 4, 4 follow from the exact counts of parameters of the latter's
    code, which builds on the public mobilevit-pytorch by Chin-Hsuan Wu.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        features: Sequence[int],
        *,
        expansion: int,
        han: bool = False,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        stem, first, second, *deep = widths
        layers: list[nn.Module] = [
            _conv(3, stem, 3, stem_stride),
            InvertedResidual(stem, first, expansion),
            InvertedResidual(first, second, expansion, stride=2),
            InvertedResidual(second, second, expansion),
            InvertedResidual(second, second, expansion),
        ]
        before = second
        for channels, width, depth, ratio in zip(deep, features, DEPTHS, MLP_RATIOS, strict=True):
            layers += [
                InvertedResidual(before, channels, expansion, stride=2),
                MobileViTBlock(channels, width, depth, ratio * width, han),
            ]
            before = channels
        self.multiple = stem_stride * 2**4 * PATCH  # of pixels: the last block's input is 1 / (stem_stride * 2^4)
        self.layers = nn.Sequential(*layers, _conv(before, 4 * before))
        self.classifier = nn.Linear(4 * before, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits, (N, num_classes), of images, (N, 3, H, W)."""
        images = _with_sides(images, self.multiple)
        return self.classifier(self.layers(images).mean((2, 3)))


def mobilevit_xxs(num_classes: int, han: bool = False, *, stem_stride: int = 1) -> MobileViT:
    """Returns MobileViT XXS: with 10 classes 1,014,672 parameters, or 553,968 with Han layers.

    Args:
        num_classes, han, stem_stride: as in `MobileViT`.

    Source: as of `MobileViT`.

    >>> import torch
    >>> from hanops.models.mobilevit import mobilevit_xxs
    >>> mobilevit_xxs(10, han=True)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    widths = (16, 16, 24, 48, 64, 80)
    return MobileViT(num_classes, widths, (64, 80, 96), expansion=2, han=han, stem_stride=stem_stride)


def mobilevit_xs(num_classes: int, han: bool = False, *, stem_stride: int = 1) -> MobileViT:
    """Returns MobileViT XS: with 10 classes 2,002,784 parameters, or 967,664 with Han layers.

    Args:
        num_classes, han, stem_stride: as in `MobileViT`.

    Source: as of `MobileViT`.
    """
    widths = (16, 32, 48, 64, 80, 96)
    return MobileViT(num_classes, widths, (96, 120, 144), expansion=4, han=han, stem_stride=stem_stride)


@torch.fx.wrap  # one node of a traced graph
def _with_sides(images: Tensor, multiple: int) -> Tensor:
    """Returns the images, after the check that their sides are multiples."""
    if images.shape[2] % multiple or images.shape[3] % multiple:
        raise ValueError(
            f"MobileViT: the images' sides must be multiples of {multiple}, got shape {list(images.shape)}"
        )
    return images


def to_patches(x: Tensor) -> Tensor:
    """Gathers the pixels that have the same place in their 2x2 patch.

    Args:
        x: (N, C, 2 h, 2 w).

    Returns:
        (4 N, h w, C): the four places of each image's patches, and in each a row per patch.
    """
    places = F.pixel_unshuffle(x, PATCH).unflatten(1, (-1, PATCH**2))  # [N, C, 4, h, w]
    return places.flatten(3).permute(0, 2, 3, 1).flatten(0, 1)


def from_patches(x: Tensor, rows: int) -> Tensor:
    """Undoes `to_patches`.

    Args:
        x: (4 N, h w, C).
        rows: h, the number of rows of patches.

    Returns:
        (N, C, 2 h, 2 w).
    """
    places = x.unflatten(0, (-1, PATCH**2)).permute(0, 3, 1, 2)  # [N, C, 4, h w]
    return F.pixel_shuffle(places.unflatten(3, (rows, -1)).flatten(1, 2), PATCH)


def _conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(),
    )
