"""Mixers, MobileViT and the head have the papers' counts of parameters, and their Han blocks compute the formula."""

import itertools

import pytest
import torch
from torch import nn

from hanops.definition import reference
from hanops.models.head import HanHead
from hanops.models.mixer import (
    ConvStem,
    HanMixerBlock,
    Mixer,
    MLPMixerBlock,
    mixer_cifar,
    mixer_imagenet64,
    mixer_stl10,
)
from hanops.models.mobilevit import (
    MobileViT,
    MobileViTBlock,
    TransformerLayer,
    from_patches,
    mobilevit_xs,
    mobilevit_xxs,
    to_patches,
)


def small_mixer() -> Mixer:
    return Mixer(10, image_size=16, channels=32, mlp_blocks=1, han_blocks=2)


def small_mobilevit(han: bool = True) -> MobileViT:
    return MobileViT(10, (8, 8, 12, 16, 16, 24), (8, 12, 16), expansion=2, han=han)


MODELS = {
    "mixer": (small_mixer, (2, 3, 16, 16)),
    "mobilevit": (lambda: small_mobilevit(han=False), (2, 3, 32, 32)),
    "mobilevit-han": (small_mobilevit, (2, 3, 32, 32)),
    "head": (lambda: HanHead(64), (2, 64)),
}


def parameters(build, *arguments) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(*arguments).parameters())


@pytest.mark.parametrize(
    ("mlp_blocks", "han_blocks", "printed"),
    [(0, 0, 1.82), (2, 0, 2.89), (4, 0, 3.96), (0, 16, 1.86), (1, 16, 2.39), (2, 16, 2.93), (4, 16, 4.00)],
)
def test_parameters_of_mixers(mlp_blocks, han_blocks, printed):
    assert round(parameters(mixer_cifar, 10, mlp_blocks, han_blocks) / 1e6, 2) == printed


@pytest.mark.parametrize(
    ("mlp_blocks", "han_blocks", "printed"), [(0, 0, "8.28"), (4, 0, "16.7"), (0, 16, "8.35"), (4, 16, "16.8")]
)
def test_parameters_of_mixers_for_imagenet64(mlp_blocks, han_blocks, printed):
    assert f"{parameters(mixer_imagenet64, 1000, mlp_blocks, han_blocks) / 1e6:.3g}" == printed


def test_parameters_of_the_mixer_that_fits_no_count():
    """The paper prints 27.2 M for 8 MLP blocks, but 8.28 and 16.7 M for 0 and 4: a block adds the same each time."""
    assert parameters(mixer_imagenet64, 1000, 8) == 25_171_944


@pytest.mark.parametrize(("tokens", "channels"), [(64, 512), (144, 512), (64, 1024)])
def test_parameters_of_blocks(tokens, channels):
    assert parameters(HanMixerBlock, tokens, channels) == 4 * (tokens + channels)
    mlp = parameters(MLPMixerBlock, tokens, channels)
    assert mlp == 2 * (tokens**2 + channels**2) + 2 * tokens + 6 * channels


def test_parameters_of_the_paper_s_mlp_block():
    assert parameters(MLPMixerBlock, 64, 512) == 535_680  # the paper prints 0.535 M


@pytest.mark.parametrize(
    ("build", "han", "printed"),
    [
        (mobilevit_xxs, False, 1_014_672),
        (mobilevit_xxs, True, 553_968),
        (mobilevit_xs, False, 2_002_784),
        (mobilevit_xs, True, 967_664),
    ],
)
def test_parameters_of_mobilevit(build, han, printed):
    assert parameters(build, 10, han) == printed


def test_parameters_of_head():
    assert parameters(HanHead) == (2048 + 1) * 30 + 3 * 2 * 30 + (30 + 1) * 10


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_finite(name):
    build, shape = MODELS[name]
    model = build()
    y = model(torch.randn(shape))
    assert y.shape == (2, 10)
    nn.functional.cross_entropy(y, torch.tensor([3, 7])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("build", [mobilevit_xxs, mobilevit_xs])
@pytest.mark.parametrize(("size", "stem_stride"), [(32, 1), (96, 1), (64, 2)])
def test_shapes_of_mobilevit(build, size, stem_stride):
    model = build(100, han=True, stem_stride=stem_stride).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, size, size)).shape == (1, 100)


@pytest.mark.parametrize(
    ("build", "size", "tokens", "channels"),
    [(mixer_cifar, 32, 64, 512), (mixer_stl10, 96, 144, 512), (mixer_imagenet64, 64, 64, 1024)],
)
def test_shapes_of_mixers(build, size, tokens, channels):
    with torch.device("meta"):
        model = build(10, 1, 1)
        x = torch.empty(2, 3, size, size)
        assert model.stem(x).flatten(2).shape == (2, channels, tokens)
        assert model(x).shape == (2, 10)


def test_stem():
    convolutions = [m for m in ConvStem() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.stride) for c in convolutions] == [
        (64, (3, 3), (1, 1)),
        (128, (3, 3), (2, 2)),
        (256, (3, 3), (1, 1)),
        (512, (3, 3), (2, 2)),
        (512, (1, 1), (1, 1)),
    ]


def test_mlp_mixer_block_is_its_formula():
    block = MLPMixerBlock(6, 8)
    x = torch.randn(3, 6, 8)
    norm = nn.functional.layer_norm(x, (8,))

    def mlp(x: torch.Tensor, layers: nn.Sequential) -> torch.Tensor:
        first, _, second = layers
        return nn.functional.gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias

    y = x + mlp(norm.transpose(1, 2), block.token_mlp).transpose(1, 2)
    y = y + mlp(nn.functional.layer_norm(y, (8,)), block.channel_mlp)
    torch.testing.assert_close(block(x), y)


def test_han_mixer_block_is_its_formula():
    tokens, channels = block = HanMixerBlock(6, 8)
    x = torch.randn(3, 6, 8)
    y = reference.han_stack(x.transpose(1, 2), tokens.u, tokens.b).transpose(1, 2)
    torch.testing.assert_close(block(x), reference.han_stack(y, channels.u, channels.b))


@pytest.mark.parametrize("han", [False, True])
def test_transformer_layer_is_its_formula(han):
    layer = TransformerLayer(12, 24, han)
    x = torch.randn(3, 5, 12)
    query, key, value = layer.attention.query_key_value(nn.functional.layer_norm(x, (12,))).chunk(3, -1)
    heads = []
    for head in range(4):
        q, k, v = (t[..., 8 * head : 8 * head + 8] for t in (query, key, value))
        heads.append((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v)
    y = x + layer.attention.out(torch.cat(heads, -1))
    if han:
        y = reference.han_stack(y, layer.mlp.u, layer.mlp.b, final_abs=False)
    else:
        _, first, _, second = layer.mlp
        y = y + second(nn.functional.silu(first(nn.functional.layer_norm(y, (12,)))))
    torch.testing.assert_close(layer(x), y)


def test_patches():
    x = torch.randn(2, 3, 6, 8)
    tokens = to_patches(x)
    assert tokens.shape == (2 * 4, 3 * 4, 3)
    for n, row, column in itertools.product(range(2), range(2), range(2)):
        place = x[n, :, row::2, column::2]  # [channels, rows of patches, columns of patches]
        assert torch.equal(tokens[4 * n + 2 * row + column], place.flatten(1).T)
    assert torch.equal(from_patches(tokens, 3), x)


def test_head_is_its_formula():
    head = HanHead(16, 4, features=6, depth=2)
    x = torch.randn(3, 16)
    y = reference.han_stack(head.dense(x).abs(), head.stack.u, head.stack.b)
    torch.testing.assert_close(head(x), head.classifier(y))


def test_bad_sizes():
    with pytest.raises(ValueError, match="Mixer: image_size must be a multiple of 4, got 30"):
        Mixer(10, image_size=30)
    with pytest.raises(ValueError, match=r"multiples of 32, got shape \[1, 3, 32, 48\]"):
        small_mobilevit()(torch.randn(1, 3, 32, 48))


@pytest.mark.parametrize(
    ("build", "shape"),
    [(small_mixer, (2, 3, 16, 16)), (lambda: MobileViTBlock(8, 12, 2, 12, han=True), (2, 8, 4, 4))],
    ids=["mixer", "mobilevit-block"],
)
def test_compile(build, shape):
    model = build().eval()
    x = torch.randn(shape)
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, model(x))
    gradients = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (y, model(x))]
    torch.testing.assert_close(*gradients)
