"""LruNet by the paper's recipe.

300 epochs, with the learning rate 0.1, 0.01 from epoch 200 on, 0.001 from 250 on.

    python train.py --config=configs/lrunet.py:cifar10 --config.model.layer_reuse=14
    python train.py --config=configs/lrunet.py:cifar10,modern

Published accuracies (single runs of the original):

    cifar10         N = 1 83.91 %    N = 14 89.34 %
    cifar100        N = 1 63.22 %    N = 14 68.84 %    (width_mult 2)
    fashion_mnist   N = 1 91.17 %    N = 10 93.46 %
"""

import ml_collections

from configs import default


def get_config(argument: str = "cifar10") -> ml_collections.ConfigDict:
    """The config for DATASET or DATASET,RECIPE; for CIFAR-100 at width 2."""
    config = default.get_config(argument)
    if config.dataset == "cifar100":
        config.model.width_mult = 2.0
    return config
