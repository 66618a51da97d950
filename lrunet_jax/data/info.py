"""Facts about a data set: the shape of its images and its classes."""

import dataclasses
import functools

from lrunet_jax.data.tfds import tfds_builder
from lrunet_jax.errors import require_known

_KNOWN = {  # (H, W, channels), classes, images to train and to test on
    "cifar10": ((32, 32, 3), 10, (50_000, 10_000)),
    "cifar100": ((32, 32, 3), 100, (50_000, 10_000)),
    "digits": ((32, 32, 1), 10, (1_437, 360)),
    "fashion_mnist": ((28, 28, 1), 10, (60_000, 10_000)),
}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set.

    Attributes:
      name: of the data set.
      data_dir: directory of TFDS; empty for the default.
      image_shape: (H, W, channels).
      num_classes: labels are from 0 to num_classes - 1.
      num_images: of the training set and of the test set, where both are whole.
    """

    name: str
    data_dir: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_images: tuple[int, int]

    @functools.cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        if self.name == "digits":
            return list("0123456789")
        builder = tfds_builder(self.name, self.data_dir)
        return builder.info.features["label"].names


def dataset_info(name: str, data_dir: str = "") -> DatasetInfo:
    """The facts about the data set `name`; arguments as for `load_split`.

    Raises:
      InputError: for an unknown name.
    """
    require_known("dataset", name, _KNOWN)
    return DatasetInfo(name, data_dir, *_KNOWN[name])
