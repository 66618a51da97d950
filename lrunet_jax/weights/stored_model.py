"""A trained network, with the facts that are known about it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from lrunet_jax.data import Split, load_split, open_source
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
      split_seed: by which the set's test images were drawn, if it had none.
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
    split_seed: int = 0

    def create_model(self) -> nn.Module:
        """The network, without its variables."""
        return create_model(**self.arguments)

    def describe(self) -> str:
        """The model's name and arguments."""
        fields = {key: value for key, value in self.arguments.items() if key != "name"}
        listed = ", ".join(f"{key}={value}" for key, value in fields.items())
        return f"{self.arguments['name']} ({listed})"


def load_test_set(
    stored: StoredModel, dataset: str = "", data_dir: str = ""
) -> tuple[str, tuple[str, ...], Split]:
    """The test set to evaluate on: by default of what it was trained on.

    Its images get the size and the channels of those that the network was trained on.

    Args:
      stored: the network.
      dataset: the name of the set; needed where the network does not say its own.
      data_dir: see `open_source`.

    Returns:
      The name of the set, its classes' names, and its test images.

    Raises:
      InputError: if it can't be read, or has another number of classes, or images of
        other channels, than the network is made for.
    """
    name = dataset or stored.dataset
    if not name:
        raise InputError(
            f"{stored.name} does not say what it was trained on; name the data set "
            "with --dataset"
        )
    if name == "arrays":
        raise InputError(
            f"{stored.name} was trained on arrays, which only Python can give; name a "
            "data set with --dataset"
        )
    ours = name == stored.dataset
    source = open_source(name, data_dir)
    classes, most = len(source.class_names), stored.arguments["num_classes"]
    field, allowed = "dataset", f"one of {most} classes, like {stored.name}; {name} has"
    require(classes == most, field, name, f"{allowed} {classes}")
    split = load_split(
        name,
        "test",
        data_dir,
        image_size=stored.image_size if ours else (),
        channels=stored.channels if ours else 0,
        split_seed=stored.split_seed,
        skip_broken=True,
    )
    channels = split.images.shape[3]
    allowed = f"one with images of {stored.channels} channels, like {stored.name}; "
    allowed += f"{name} has {channels}"
    require(channels == stored.channels, field, name, allowed)
    return name, source.class_names, split


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
        "split_seed": is_count(stored.split_seed),
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
