"""The handwritten digits that come with the package."""

import pathlib
from collections.abc import Sequence

import numpy as np

from lrunet_jax.data.info import KNOWN
from lrunet_jax.data.pictures import stack, treated
from lrunet_jax.data.source import Source


class Digits(Source):
    """The UCI handwritten digits: 1,437 to train, 360 to test, 32x32, grey.

    The package's file holds 8x8 images with values from 0 to 16, and their source and
    licence. The images are enlarged bilinearly.
    """

    name = "digits"
    class_names = KNOWN["digits"].class_names
    splits = ("train", "test")

    def read(
        self, split: str, image_size: Sequence[int], channels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a split, see `Source`."""
        with np.load(pathlib.Path(__file__).with_name("digits.npz")) as file:
            images, labels = file["images"], file["labels"].astype(np.int32)
        # Each of the 32 new pixels lies between two old ones; the edge is repeated.
        positions = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
        weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(8)))
        images = np.round(weights @ images @ weights.T * (255 / 16)).astype(np.uint8)
        rows = {"train": slice(0, 1437), "test": slice(1437, None)}[split]
        one_by_one = (treated(i, image_size, channels) for i in images[rows, ..., None])
        return stack(one_by_one, f"digits ({split})"), labels[rows]
