"""What the papers print: Yu and Zhang, arXiv 2106.04088, version 1 and the later one."""

from __future__ import annotations

from .ablation import NAMES as HIDDEN
from .approximation import PAIRS
from .approximation import PAPER as ERRORS

# Figures are texts, as they are printed: '85.27 ± 0.35' has a deviation, and 96.5 is known to a tenth.
V1 = "https://arxiv.org/abs/2106.04088v1"
# stem: name, layers, parameters, activation ratio %, test and training accuracy %
CHECKERBOARD = {
    "fcnet1": ("FCNet1", "6 x 100", "51,002", "1.17", "85.27 ± 0.35", "99.97 ± 0.03"),
    "fcnet2": ("FCNet2", "10 x 100", "91,402", "1.96", "85.34 ± 0.38", "99.98 ± 0.02"),
    "fcnet3": ("FCNet3", "6 x 300", "453,002", "0.39", "85.61 ± 0.17", "100.0"),
    "hannet": ("HanNet", "20 x 30", "3,032", "19.78", "99.52 ± 0.27", "99.98 ± 0.02"),
}
# stem: name, and of the one run with 10 % of the labels flipped: best test accuracy %, training accuracy there, test
# and training accuracy at the last iteration
NOISE = {
    "fcnet1": ("FCNet1", "80.8", "94.3", None, None),
    "hannet": ("HanNet", "96.5", "90.1", "about 90", "99.8"),
}
# stem: name, test accuracy of v1 and of the later version, %
ABLATION: dict[str, tuple[str, str | None, str | None]] = {
    stem: (HIDDEN[stem], *both)
    for stem, both in {
        "hannet": ("99.5", "99.2"),
        "han-relu": ("76.8", "66.2"),
        "han-maxmin": (None, "77.6"),
        "han-groupsort": (None, "81.4"),
        "dense-abs": ("82.6", "85.3"),
        "dense-relu": ("82.3", None),
        "orth-abs": (None, "86.7"),
        "orth-relu": (None, "75.5"),
    }.items()
}
# inputs: RMSE of each teacher by each student
APPROXIMATION = {
    inputs: {" by ".join(pair): f"{error:.5f}" for pair, error in zip(PAIRS, errors, strict=True)}
    for inputs, errors in ERRORS.items()
}
REGRESSION_RATIOS = {"elevators": "34.47", "calhousing": "41.66"}  # activation ratio of HanNet, %
REGRESSION_MODELS = {"hannet": "HanNet", "fcnet1": "FCNet1", "fcnet2": "FCNet2"}
# stem: features, and the parameters of HanNet, FCNet1, FCNet2
REGRESSION_PARAMETERS = {
    "elevators": (18, ("11,601", "11,201", "164,801")),
    "calhousing": (8, ("9,601", "10,701", "162,801")),
}
# stem: name, test RMSE and R2 of HanNet, FCNet1, FCNet2 by the part of the rows that trains
REGRESSION = {
    "bikesharing": (
        "Bikesharing",
        {0.8: ("0.218", "0.241", "0.223"), 0.2: ("0.311", "0.498", "0.344")},
        {0.8: ("0.951", "0.938", "0.949"), 0.2: ("0.898", "0.744", "0.877")},
    ),
    "calhousing": (
        "Cal Housing",
        {0.8: ("0.431", "0.462", "0.459"), 0.2: ("0.476", "0.506", "0.498")},
        {0.8: ("0.813", "0.786", "0.788"), 0.2: ("0.772", "0.743", "0.75")},
    ),
    "elevators": (
        "Elevators",
        {0.8: ("0.087", "0.090", "0.091"), 0.2: ("0.103", "0.140", "0.106")},
        {0.8: ("0.878", "0.869", "0.869"), 0.2: ("0.832", "0.671", "0.823")},
    ),
    "parkinsons": (
        "Parkinsons",
        {0.8: ("1.235", "2.035", "1.399"), 0.2: ("3.072", "5.034", "4.187")},
        {0.8: ("0.986", "0.963", "0.982"), 0.2: ("0.917", "0.777", "0.845")},
    ),
    "skillcraft": (
        "Skillcraft",
        {0.8: ("0.255", "0.282", "0.266"), 0.2: ("0.276", "0.328", "0.301")},
        {0.8: ("0.546", "0.455", "0.507"), 0.2: ("0.477", "0.266", "0.383")},
    ),
}
# accuracy % on MNIST under each attack; the text at hand does not print the radii of PGD
ATTACKS = [
    "clean",
    *(f"CW, c = {c}" for c in (1, 3, 5)),
    *(f"PGD, {norm} norm, radius {place}" for norm in ("one", "the other") for place in (1, 2, 3)),
]
ROBUSTNESS = {
    "hannet": ("HanNet", ["92.5", "88.7", "75.7", "65.3", "78.3", "52.9", "26.0", "75.3", "40.6", "7.5"]),
    "fcnet": ("FCNet", ["96.4", "68.4", "6.9", "3.2", "70.5", "12.1", "0.7", "46.7", "1.8", "0.1"]),
    "fcnet-trades": ("FCNet, TRADES", ["96.9", "82.8", "43.7", "21.6", "86.6", "44.8", "7.1", "86.1", "47.5", "4.2"]),
    "fcnet-adversarial": (
        "FCNet, adversarial training",
        ["96.7", "81.5", "34.8", "17.6", "85.9", "41.2", "5.1", "86.7", "42.0", "4.1"],
    ),
}
IMAGE_SETS = {"stl10": "STL-10", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
# blocks after the stem: parameters in millions, top-1 error on STL-10, CIFAR-10, CIFAR-100, %
MIXERS = {
    "stem": ("stem alone", "1.82", ("18.2", "7.2", "27.8")),
    "mlp2": ("MLP(2)", "2.89", ("18.2", "5.3", "27.2")),
    "mlp4": ("MLP(4)", "3.96", ("18.7", "5.5", "27.1")),
    "han16": ("Han(16)", "1.86", ("15.3", "5.9", "26.7")),
    "mlp1-han16": ("MLP(1) + Han(16)", "2.39", ("16.7", "5.0", "24.6")),
    "mlp2-han16": ("MLP(2) + Han(16)", "2.93", ("17.1", "4.7", "24.4")),
    "mlp4-han16": ("MLP(4) + Han(16)", "4.00", ("17.8", "4.6", "24.7")),
}
# network: parameters with 10 classes, top-1 error on STL-10, CIFAR-10, CIFAR-100, %
MOBILEVITS = {
    "xxs": ("MobileViT XXS", "1,014,672", ("12.4", "4.4", "22.7")),
    "xxs-han": ("MobileViT XXS, Han", "553,968", ("12.0", "4.5", "22.5")),
    "xs": ("MobileViT XS", "2,002,784", ("11.5", "4.2", "21.1")),
    "xs-han": ("MobileViT XS, Han", "967,664", ("11.0", "3.9", "20.4")),
}
# ImageNet-64. blocks after the stem: parameters in millions, top-1 and top-5 error, %
IMAGENET = {
    "stem": ("stem alone", "8.28", ("55.7", "31.2")),
    "mlp4": ("MLP(4)", "16.7", ("44.2", "21.2")),
    "mlp8": ("MLP(8)", "27.2", ("42.6", "20.2")),
    "han16": ("Han(16)", "8.35", ("48.9", "26.1")),
    "mlp4-han16": ("MLP(4) + Han(16)", "16.8", ("41.1", "19.2")),
}
# top-1 error on LaNet's features of CIFAR-10, %
HEAD = {"han": ("Han head", "0.89 ± 0.02"), "linear": ("its rival", "0.99 ± 0.02")}
