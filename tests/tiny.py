"""A config of the smallest run, for tests whose subject is not the network.

    python train.py --config=tests/tiny.py

Of LruNet a run compiles twice as long.
"""

import pathlib

import ml_collections

from configs import digits
from lrunet_jax.models import mobilenet

STAGES = ((64, 1, 1), (1024, 1, 2))  # two blocks, one of either stride
FLAG = f"--config={pathlib.Path(__file__).resolve()}"
# The flags of the smallest LruNet, for what two blocks of MobileNet can't show.
LRUNET = ("--config.model.layer_reuse=1", "--config.model.width_mult=0.125")


def get_config() -> ml_collections.ConfigDict:
    """The config, with MobileNet made shallow for as long as this process runs.

    In a test's own process, whoever asks for it needs the fixture `shallow`.
    """
    mobilenet.STAGES = STAGES
    return tiny_config()


def tiny_config(**fields) -> ml_collections.ConfigDict:
    """The config of two epochs of 23 steps, and the last step smaller than others."""
    config = digits.get_config()
    config.model = {"name": "mobilenet", "width_mult": 0.125, "drop": 0.2}
    config.augment.size = 16
    config.epochs = 2
    config.update(fields)
    return config
