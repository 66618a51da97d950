"""A trained network, with the facts that are known about it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from lrunet_jax.data import dataset_info
from lrunet_jax.errors import InputError, require
from lrunet_jax.models import create_model


class StoredModel(NamedTuple):
    """A trained network and the facts that are known about it.

    Attributes:
      arguments: for `create_model`, `name` among them.
      channels: the number of channels of its images.
      variables: `params` and `batch_stats`, the moving averages of both if the run
        kept them, and `input_stats` if images are normalised; NumPy arrays.
      counters: PyTorch's `num_batches_tracked` by norm, or one for all.
      name: of a published checkpoint, else of the file or directory.
      dataset: that it was trained on; empty if that is not known.
      accuracy: on the test set, a fraction, as recorded; None if it is not.
      epoch: after which it was stored, counted from 0; None if not recorded.
      class_names: in the order of the labels; empty if they are not known.
      image_size: [H, W] of the images that it was trained on; empty if not known.
    """

    arguments: dict[str, Any]
    channels: int
    variables: Any
    counters: dict[str, int] | int
    name: str
    dataset: str
    accuracy: float | None
    epoch: int | None
    class_names: Sequence[str] = ()
    image_size: Sequence[int] = ()

    def create_model(self) -> nn.Module:
        """The network, without its variables."""
        return create_model(**self.arguments)

    def describe(self) -> str:
        """The model's name and arguments."""
        fields = {key: value for key, value in self.arguments.items() if key != "name"}
        listed = ", ".join(f"{key}={value}" for key, value in fields.items())
        return f"{self.arguments['name']} ({listed})"


def choose_dataset(stored: StoredModel, dataset: str = "") -> str:
    """The data set to evaluate on: `dataset`, by default what it was trained on.

    Raises:
      InputError: if it is not known, or has other images or another number of classes
        than the network is made for.
    """
    name = dataset or stored.dataset
    if not name:
        raise InputError(
            f"{stored.name} does not say what it was trained on; name the data set "
            "with --dataset"
        )
    info = dataset_info(name)
    have = (stored.arguments["num_classes"], stored.channels)
    need = (info.num_classes, info.image_shape[2])
    require(
        have == need,
        "dataset",
        name,
        f"one of {have[0]} classes and images of {have[1]} channels, like {stored.name}"
        f"; {name} has {need[0]} and {need[1]}",
    )
    return name


def require_facts(stored: StoredModel) -> None:
    """Checks that every fact is of its type, as a file may hold anything.

    Raises:
      ValueError: that names the first one of a wrong type.
    """
    is_count = lambda value: type(value) is int and 0 <= value < 1 << 63
    counters, accuracy = stored.counters, stored.accuracy
    sound = {
        "arguments": isinstance(stored.arguments, dict),
        "channels": is_count(stored.channels) and stored.channels > 0,
        "counters": is_count(counters)
        or (isinstance(counters, dict) and all(map(is_count, counters.values()))),
        "name": isinstance(stored.name, str),
        "dataset": isinstance(stored.dataset, str),
        "accuracy": accuracy is None
        or (isinstance(accuracy, int | float) and 0 <= accuracy <= 1),
        "epoch": stored.epoch is None or is_count(stored.epoch),
        "class_names": isinstance(stored.class_names, list | tuple)
        and all(isinstance(name, str) for name in stored.class_names)
        and len(stored.class_names) in (0, stored.arguments.get("num_classes")),
        "image_size": isinstance(stored.image_size, list | tuple)
        and all(is_count(side) and side > 0 for side in stored.image_size)
        and len(stored.image_size) in (0, 2),
    }
    for field, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{field} is {str(getattr(stored, field))!r:.90}")


def abstract_input_stats(channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The `mean` and `std` (channels,) of images, as `jax.ShapeDtypeStruct`."""
    per_channel = jax.ShapeDtypeStruct((channels,), np.float32)
    return {"mean": per_channel, "std": per_channel}
