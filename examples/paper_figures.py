"""What the papers print: Yu and Zhang, arXiv 2106.04088, version 1 and the later one."""

from __future__ import annotations

# stem: name, layers, parameters, activation ratio %, test and training accuracy % with their deviations
CHECKERBOARD = {
    "fcnet1": ("FCNet1", "6 x 100", 51_002, 1.17, (85.27, 0.35), (99.97, 0.03)),
    "fcnet2": ("FCNet2", "10 x 100", 91_402, 1.96, (85.34, 0.38), (99.98, 0.02)),
    "fcnet3": ("FCNet3", "6 x 300", 453_002, 0.39, (85.61, 0.17), (100.0, None)),
    "hannet": ("HanNet", "20 x 30", 3_032, 19.78, (99.52, 0.27), (99.98, 0.02)),
}
CHECKERBOARD_ITERATIONS = 40_000
# stem: name, best test accuracy with 10 % of the labels flipped, and what else is told of that run
NOISE = {
    "fcnet1": ("FCNet1", 80.8, "94.3 train"),
    "hannet": ("HanNet", 96.5, "90.1 train; about 90 test, 99.8 train at the last iteration"),
}
# stem: name, test accuracy of v1 and of the later version, %
ABLATION: dict[str, tuple[str, float | None, float | None]] = {
    "hannet": ("reflection, abs (Han)", 99.5, 99.2),
    "han-relu": ("reflection, ReLU", 76.8, 66.2),
    "han-maxmin": ("reflection, MaxMin", None, 77.6),
    "han-groupsort": ("reflection, GroupSort(5)", None, 81.4),
    "dense-abs": ("dense, abs", 82.6, 85.3),
    "dense-relu": ("dense, ReLU", 82.3, None),
    "orth-abs": ("orthogonal dense, abs", None, 86.7),
    "orth-relu": ("orthogonal dense, ReLU", None, 75.5),
}
# inputs: RMSE of each teacher by each student
APPROXIMATION = {
    2: {"FC-1 by FC-1": 0.00033, "FC-1 by Han-3": 0.00049, "Han-3 by FC-1": 0.00107, "Han-3 by Han-3": 0.00079},
    3: {"FC-1 by FC-1": 0.00086, "FC-1 by Han-3": 0.00078, "Han-3 by FC-1": 0.00251, "Han-3 by Han-3": 0.00237},
    4: {"FC-1 by FC-1": 0.00184, "FC-1 by Han-3": 0.00192, "Han-3 by FC-1": 0.00478, "Han-3 by Han-3": 0.00494},
}
APPROXIMATION_EPOCHS = 1_000
REGRESSION_EPOCHS = 300
REGRESSION_RATIOS = {"elevators": 34.47, "calhousing": 41.66}  # activation ratio of HanNet, %
REGRESSION_MODELS = {"hannet": "HanNet", "fcnet1": "FCNet1", "fcnet2": "FCNet2"}
# stem: name, test RMSE and R2 of HanNet, FCNet1, FCNet2 by the part of the rows that trains
REGRESSION = {
    "bikesharing": (
        "Bikesharing",
        {0.8: (0.218, 0.241, 0.223), 0.2: (0.311, 0.498, 0.344)},
        {0.8: (0.951, 0.938, 0.949), 0.2: (0.898, 0.744, 0.877)},
    ),
    "calhousing": (
        "Cal Housing",
        {0.8: (0.431, 0.462, 0.459), 0.2: (0.476, 0.506, 0.498)},
        {0.8: (0.813, 0.786, 0.788), 0.2: (0.772, 0.743, 0.75)},
    ),
    "elevators": (
        "Elevators",
        {0.8: (0.087, 0.090, 0.091), 0.2: (0.103, 0.140, 0.106)},
        {0.8: (0.878, 0.869, 0.869), 0.2: (0.832, 0.671, 0.823)},
    ),
    "parkinsons": (
        "Parkinsons",
        {0.8: (1.235, 2.035, 1.399), 0.2: (3.072, 5.034, 4.187)},
        {0.8: (0.986, 0.963, 0.982), 0.2: (0.917, 0.777, 0.845)},
    ),
    "skillcraft": (
        "Skillcraft",
        {0.8: (0.255, 0.282, 0.266), 0.2: (0.276, 0.328, 0.301)},
        {0.8: (0.546, 0.455, 0.507), 0.2: (0.477, 0.266, 0.383)},
    ),
}
# network: accuracy on MNIST without an attack, under CW with three constants, under PGD with three radii of two norms
ROBUSTNESS = {
    "hannet": (0.925, (0.887, 0.757, 0.653), (0.783, 0.529, 0.260), (0.753, 0.406, 0.075)),
    "fcnet": (0.964, (0.684, 0.069, 0.032), (0.705, 0.121, 0.007), (0.467, 0.018, 0.001)),
    "trades": (0.969, (0.828, 0.437, 0.216), (0.866, 0.448, 0.071), (0.861, 0.475, 0.042)),
    "adversarial": (0.967, (0.815, 0.348, 0.176), (0.859, 0.412, 0.051), (0.867, 0.420, 0.041)),
}
# blocks after the stem: parameters in millions, top-1 error on STL-10, CIFAR-10, CIFAR-100, %
MIXERS = {
    "stem": ("stem alone", "1.82", (18.2, 7.2, 27.8)),
    "mlp2": ("MLP(2)", "2.89", (18.2, 5.3, 27.2)),
    "mlp4": ("MLP(4)", "3.96", (18.7, 5.5, 27.1)),
    "han16": ("Han(16)", "1.86", (15.3, 5.9, 26.7)),
    "mlp1-han16": ("MLP(1) + Han(16)", "2.39", (16.7, 5.0, 24.6)),
    "mlp2-han16": ("MLP(2) + Han(16)", "2.93", (17.1, 4.7, 24.4)),
    "mlp4-han16": ("MLP(4) + Han(16)", "4.00", (17.8, 4.6, 24.7)),
}
# network: parameters with 10 classes, top-1 error on STL-10, CIFAR-10, CIFAR-100, %
MOBILEVITS = {
    "xxs": ("MobileViT XXS", "1,014,672", (12.4, 4.4, 22.7)),
    "xxs-han": ("MobileViT XXS, Han", "553,968", (12.0, 4.5, 22.5)),
    "xs": ("MobileViT XS", "2,002,784", (11.5, 4.2, 21.1)),
    "xs-han": ("MobileViT XS, Han", "967,664", (11.0, 3.9, 20.4)),
}
# ImageNet-64. blocks after the stem: parameters in millions, top-1 and top-5 error, %
IMAGENET = {
    "stem": ("stem alone", "8.28", (55.7, 31.2)),
    "mlp4": ("MLP(4)", "16.7", (44.2, 21.2)),
    "mlp8": ("MLP(8)", "27.2", (42.6, 20.2)),
    "han16": ("Han(16)", "8.35", (48.9, 26.1)),
    "mlp4-han16": ("MLP(4) + Han(16)", "16.8", (41.1, 19.2)),
}
HEAD = "0.89 ± 0.02 against 0.99 ± 0.02"  # top-1 error on LaNet's features of CIFAR-10, %
