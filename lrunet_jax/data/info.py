"""Facts about a data set: the shape of its images and its classes."""

import dataclasses

from lrunet_jax.errors import require_known

MAX_SIDE = 1 << 14  # of an image, in pixels


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about a data set.

    Attributes:
      name: of the data set.
      image_shape: (H, W, channels).
      class_names: in the order of their labels, which are numbers from 0.
      num_images: of the training set and of the test set.
      num_validation: images that were held out of the training set.
      digest: of all images and labels, see `digest`; empty where they were not read.
      test_digest: of the test images and their labels.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_images: tuple[int, int]
    num_validation: int = 0
    digest: str = ""
    test_digest: str = ""

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


def dataset_info(name: str) -> DatasetInfo:
    """The facts about a data set of the published networks, or about the digits.

    Raises:
      InputError: for another name.
    """
    require_known("dataset", name, KNOWN)
    return KNOWN[name]


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
    bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
    cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
    girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_FASHION = """
    T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot
"""

KNOWN = {
    info.name: info
    for info in (
        DatasetInfo("cifar10", (32, 32, 3), (*_CIFAR10.split(),), (50_000, 10_000)),
        DatasetInfo("cifar100", (32, 32, 3), (*_CIFAR100.split(),), (50_000, 10_000)),
        DatasetInfo("digits", (32, 32, 1), (*"0123456789",), (1_437, 360)),
        DatasetInfo(
            "fashion_mnist",
            (28, 28, 1),
            (*_FASHION.strip().split(","),),
            (60_000, 10_000),
        ),
    )
}
