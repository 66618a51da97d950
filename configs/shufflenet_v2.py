"""ShuffleNetV2 by the paper's recipe.

300 epochs, with the learning rate 0.1, 0.01 from epoch 200 on, 0.001 from 250 on.

    python train.py --config=configs/shufflenet_v2.py:cifar10
    python train.py --config=configs/shufflenet_v2.py:cifar10,modern

Published accuracies (single runs of the original):

    cifar10 89.31 %    cifar100 69.15 %    fashion_mnist 93.42 %
"""

import ml_collections

from configs import default


def get_config(argument: str = "cifar10") -> ml_collections.ConfigDict:
    """The config for DATASET or DATASET,RECIPE, at the paper's width for that set."""
    config = default.get_config(argument)
    config.model = ml_collections.ConfigDict()
    config.model.name = "shufflenet_v2"
    config.model.width_mult = 0.75 if config.dataset == "cifar100" else 0.25
    return config
