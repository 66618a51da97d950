"""Data sets, their augmentation, and the order in which images are seen."""

from lrunet_jax.data.augment import Augmentation
from lrunet_jax.data.batches import (
    epoch_order,
    eval_batches,
    last_batch_size,
    train_batches,
)
from lrunet_jax.data.info import DatasetInfo, dataset_info
from lrunet_jax.data.pixels import input_stats, to_float
from lrunet_jax.data.sources import (
    Dataset,
    Split,
    dataset_of_arrays,
    load_dataset,
    load_split,
    open_source,
    read_split,
)

__all__ = [
    "Augmentation",
    "Dataset",
    "DatasetInfo",
    "Split",
    "dataset_info",
    "dataset_of_arrays",
    "epoch_order",
    "eval_batches",
    "input_stats",
    "last_batch_size",
    "load_dataset",
    "load_split",
    "open_source",
    "read_split",
    "to_float",
    "train_batches",
]
