"""The networks of the Han-layer papers (Yu and Zhang, arXiv 2106.04088), on hanops' kernels."""

from hanops.models.hannet import FCNet, HanNet, Network, load_hannet, orthogonality_penalty
from hanops.models.head import HanHead
from hanops.models.mixer import Mixer, mixer_cifar, mixer_imagenet64, mixer_stl10
from hanops.models.mobilevit import MobileViT, mobilevit_xs, mobilevit_xxs

__all__ = [
    "FCNet",
    "HanHead",
    "HanNet",
    "Mixer",
    "MobileViT",
    "Network",
    "load_hannet",
    "mixer_cifar",
    "mixer_imagenet64",
    "mixer_stl10",
    "mobilevit_xs",
    "mobilevit_xxs",
    "orthogonality_penalty",
]
