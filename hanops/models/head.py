"""HanHead: a thin classifier of frozen features."""

from torch import Tensor, nn

from hanops.models.layers import start_orthogonal
from hanops.modules import HanStack


class HanHead(nn.Module):
    """A dense layer to a few features, its absolute value, Han layers, and a dense layer to the classes.

    Weights of the dense layers start orthogonal, as in the authors' code.

    Args:
        in_features: length of the frozen features.
        num_classes: length of the output.
        features: width of the Han layers.
        depth: number of Han layers.

    Source: Yu and Zhang, arXiv 2106.04088, the experiment on a trained network's features for CIFAR-10: the defaults.

    >>> import torch
    >>> from hanops.models.head import HanHead
    >>> HanHead()(torch.randn(4, 2048)).shape
    torch.Size([4, 10])
    """

    def __init__(self, in_features: int = 2048, num_classes: int = 10, *, features: int = 30, depth: int = 3) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, features)
        self.stack = HanStack(features, depth)
        self.classifier = nn.Linear(features, num_classes)
        start_orthogonal(self.dense.weight)
        start_orthogonal(self.classifier.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, (..., num_classes), of features, (..., in_features)."""
        return self.classifier(self.stack(self.dense(x).abs()))
