"""Data sets, their augmentation, and the order in which images are seen."""

from lrunet_jax.data.augment import make_augment
from lrunet_jax.data.pipeline import (
    epoch_order,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from lrunet_jax.data.sources import (
    IMAGE_SHAPES,
    NUM_CLASSES,
    Split,
    class_names,
    input_stats,
    load_split,
)

__all__ = [
    "IMAGE_SHAPES",
    "NUM_CLASSES",
    "Split",
    "class_names",
    "epoch_order",
    "eval_batches",
    "input_stats",
    "load_split",
    "make_augment",
    "steps_per_epoch",
    "train_batches",
]
