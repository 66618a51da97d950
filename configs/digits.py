"""LruNet, N = 4, on the handwritten digits that come with the package.

    python train.py

It reaches about 99 % test accuracy, in about two minutes on two CPU cores.
"""

import ml_collections

from configs import default


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config of a short run, without augmentation: a flipped digit is none."""
    if argument:
        raise ValueError(f"config argument is {argument!r}; digits.py takes none")
    config = default.paper()
    config.dataset = "digits"
    config.model.layer_reuse = 4
    config.model.drop = 0.2
    config.augment.padding = 0
    config.augment.rotation = 0.0
    config.augment.flip = False
    config.batch_size = 64
    config.epochs = 15
    config.learning_rate = 0.05
    config.schedule = "cosine"
    config.warmup_epochs = 1.0
    return config
