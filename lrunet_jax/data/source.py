"""A place that a data set comes from."""

import abc
from collections.abc import Sequence

import numpy as np
from etils import epath


class Source(abc.ABC):
    """A data set that is opened, and not read yet.

    Attributes:
      name: of the set.
      directory: where it lies; empty for what comes with the package.
      class_names: in the order of the labels.
      splits: the names of its splits.
      skips_broken: whether files are left out that can't be decoded, of which each is
        an image.
      ignored: paths of what is there beside the images.
    """

    name: str
    directory: str = ""
    class_names: tuple[str, ...]
    splits: Sequence[str]
    skips_broken: bool = False
    ignored: Sequence[epath.Path] = ()

    def files(self, split: str) -> Sequence[epath.Path]:
        """Files of a split; none where decoding takes no time that is worth a cache."""
        return ()

    @abc.abstractmethod
    def read(
        self, split: str, image_size: Sequence[int], channels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, H, W, channels) uint8 and labels (n,) int32 of a split.

        Args:
          split: one of `splits`.
          image_size: [H, W] to resize to; empty for the size that all have.
          channels: of the images; 0 for those of the split.

        Raises:
          InputError: if it can't be read, or images differ in size.
        """
