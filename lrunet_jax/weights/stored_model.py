"""A trained network, with the facts that are known about it."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from lrunet_jax.data import Split, open_source, read_split
from lrunet_jax.data.info import MAX_SIDE
from lrunet_jax.data.sources import digest
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
      test_digest: of its test images and labels; empty if it is not known.
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
    test_digest: str = ""

    def create_model(self) -> nn.Module:
        """The network, without its variables."""
        return create_model(**self.arguments)

    def describe(self) -> str:
        """The model's name and arguments."""
        fields = {key: value for key, value in self.arguments.items() if key != "name"}
        listed = ", ".join(f"{key}={value}" for key, value in fields.items())
        return f"{self.arguments['name']} ({listed})"


def load_test_set(
    stored: StoredModel, dataset: str = "", data_dir: str = "", image_size: int = 0
) -> tuple[str, tuple[str, ...], Split]:
    """The test set to evaluate on: by default of what it was trained on.

    Its images get the size and the channels of those that the network was trained on.
    On standard error it is said if they are others than at the end of the training.

    Args:
      stored: the network.
      dataset: the name of the set; needed where the network does not say its own.
      data_dir: see `open_source`.
      image_size: S to resize images to S x S; by default the size that the network was
        trained on, if it is known, else that of the images.

    Returns:
      The name of the set, its classes' names, and its test images.

    Raises:
      InputError: if it can't be read, or has other classes, or images of other
        channels, than the network is made for.
    """
    allowed = f"in [0, {MAX_SIDE}]"
    require(0 <= image_size <= MAX_SIDE, "image_size", image_size, allowed)
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
    source = open_source(name, data_dir, skip_broken=True)
    classes, most = len(source.class_names), stored.arguments["num_classes"]
    field, allowed = "dataset", f"one of {most} classes, like {stored.name}; {name} has"
    require(classes == most, field, name, f"{allowed} {classes}")
    names = tuple(stored.class_names)
    if ours and names and names != source.class_names:
        pairs = zip(names, source.class_names, strict=True)
        old, new = next((old, new) for old, new in pairs if old != new)
        raise InputError(
            f"dataset is {name!r}; it must be one with the class {old!r} where {name} "
            f"has {new!r}, like {stored.name}"
        )
    size = (image_size, image_size) if image_size else stored.image_size if ours else ()
    split = read_split(
        source,
        "test",
        image_size=size,
        channels=stored.channels if ours else 0,
        split_seed=stored.split_seed,
    )
    channels = split.images.shape[3]
    allowed = f"one with images of {stored.channels} channels, like {stored.name}; "
    allowed += f"{name} has {channels}"
    require(channels == stored.channels, field, name, allowed)
    known = ours and stored.test_digest and not image_size
    if known and digest([split]) != stored.test_digest:
        others = "are not those of the training, which may have seen some of them"
        print(f"{len(split.labels)} test images {others}", file=sys.stderr)
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
        "test_digest": isinstance(stored.test_digest, str),
        "class_names": isinstance(stored.class_names, list | tuple)
        and all(isinstance(name, str) for name in stored.class_names)
        and len(stored.class_names) in (0, stored.arguments.get("num_classes")),
        "image_size": isinstance(stored.image_size, list | tuple)
        and all(is_count(s) and 0 < s <= MAX_SIDE for s in stored.image_size)
        and len(stored.image_size) in (0, 2),
    }
    for field, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{field} is {str(getattr(stored, field))!r:.90}")


def abstract_input_stats(channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The `mean` and `std` (channels,) of images, as `jax.ShapeDtypeStruct`."""
    per_channel = jax.ShapeDtypeStruct((channels,), np.float32)
    return {"mean": per_channel, "std": per_channel}
