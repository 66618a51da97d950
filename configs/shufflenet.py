"""ShuffleNet by the paper's recipe.

300 epochs, with the learning rate 0.1, 0.01 from epoch 200 on, 0.001 from 250 on.

    python train.py --config=configs/shufflenet.py:cifar10
    python train.py --config=configs/shufflenet.py:cifar10,modern

Published accuracies (single runs of the original):

    cifar10 90.32 %    cifar100 69.97 %    fashion_mnist 94.11 %
"""

import ml_collections

from configs import default


def get_config(argument: str = "cifar10") -> ml_collections.ConfigDict:
    """The config for DATASET or DATASET,RECIPE, at the paper's width for that set."""
    config = default.get_config(argument)
    config.model = ml_collections.ConfigDict()
    config.model.name = "shufflenet"
    config.model.width_mult = 0.75 if config.dataset == "cifar100" else 0.5
    config.model.groups = 3  # of the pointwise convolutions: 1, 2, 3, 4 or 8
    return config
