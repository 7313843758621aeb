"""The networks of the Han-layer papers (Yu and Zhang, arXiv 2106.04088), on hanops' kernels."""

from hanops.models.hannet import FCNet, HanNet, load_hannet, orthogonality_penalty

__all__ = ["FCNet", "HanNet", "load_hannet", "orthogonality_penalty"]
