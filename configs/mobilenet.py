"""MobileNet by the paper's recipe: 300 epochs, 0.1 / 0.01 / 0.001 at 200 and 250.

    python train.py --config=configs/mobilenet.py:cifar10
    python train.py --config=configs/mobilenet.py:cifar10,modern

Published accuracies (single runs of the original):

    cifar10 84.72 %    cifar100 60.54 %    fashion_mnist 90.63 %
"""

import ml_collections

from configs import default


def get_config(argument: str = "cifar10") -> ml_collections.ConfigDict:
    """`DATASET` or `DATASET,RECIPE`, at the width that the paper has for it."""
    config = default.get_config(argument)
    config.model = ml_collections.ConfigDict()
    config.model.name = "mobilenet"
    config.model.width_mult = 0.4 if config.dataset == "cifar100" else 0.25
    config.model.drop = 0.2  # dropout rate before the classifier
    return config
