"""The original's eighteen published checkpoints, by name."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from lrunet_jax.data import dataset_info
from lrunet_jax.errors import InputError, in_one_line, require_known
from lrunet_jax.files import find_path
from lrunet_jax.models import create_model, summarise

# The original's repository, at a commit.
BASE_URL = (
    "https://raw.githubusercontent.com/okankop/CNN-layer-reuse/"
    "1dd8d42bf58442c9530dd660fabe054d434008ed/pretrained/"
)
NUM_IMAGES = 10_000  # in each test set


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
      suffix: the end of its file name, `NAME-ckpt-SUFFIX.t7`.
      model: the name of the model.
      arguments: the attributes of the model, without the number of classes.
      dataset: the name of the data set that it was trained and tested on.
      correct: the number of images of the test set that it recognises.
      sha256: the checksum of the file.
    """

    suffix: str
    model: str
    arguments: Mapping[str, Any]
    dataset: str
    correct: int
    sha256: str

    @property
    def accuracy(self) -> float:
        """The published accuracy, a fraction."""
        return self.correct / NUM_IMAGES

    @property
    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `create_model`, `name` and `num_classes` among them."""
        classes = dataset_info(self.dataset).num_classes
        return {"name": self.model, "num_classes": classes, **self.arguments}

    def costs(self) -> dict[str, int]:
        """The costs of the model for an image of its data set, see `summarise`."""
        model = create_model(**self.model_arguments)
        return summarise(model, dataset_info(self.dataset).image_shape)


PUBLISHED = {
    "cifar10-lru1": Published(
        "08391",
        "lrunet",
        {"width_mult": 1.0, "layer_reuse": 1},
        "cifar10",
        8391,
        "6bac007ff78004d21884f7b0682f7978796f92a0e850cac6c1168ba756d81465",
    ),
    "cifar10-lru14": Published(
        "08934",
        "lrunet",
        {"width_mult": 1.0, "layer_reuse": 14},
        "cifar10",
        8934,
        "bc6991084834975d549134aa79cffaaf471a525649f2f0fa11151bdee9664bfe",
    ),
    "cifar10-mobilenet-025x": Published(
        "08472",
        "mobilenet",
        {"width_mult": 0.25},
        "cifar10",
        8472,
        "cebb5079a2016fb76c539d41b3c2ca5bb179e5f5dbee401479245e87e96ea6dc",
    ),
    "cifar10-mobilenetv2-025x": Published(
        "08957",
        "mobilenet_v2",
        {"width_mult": 0.25},
        "cifar10",
        8957,
        "b6062052c0c406f4918ec8617cf7f6c0a11dd02eb6744fbab214cacb03eb2271",
    ),
    "cifar10-shufflenet-05x": Published(
        "090320",
        "shufflenet",
        {"width_mult": 0.5, "groups": 3},
        "cifar10",
        9032,
        "104c612ab1e93774298acaabf5ee8b14881d21fbd80131c5546f96b0710c235c",
    ),
    "cifar10-shufflenetv2-025x": Published(
        "089310",
        "shufflenet_v2",
        {"width_mult": 0.25},
        "cifar10",
        8931,
        "dc607a2e717cb207af296c1fe896a5c3f6c6fa7f6cefd888ebf5554c7e541997",
    ),
    "cifar100-lru1-2x": Published(
        "06322",
        "lrunet",
        {"width_mult": 2.0, "layer_reuse": 1},
        "cifar100",
        6322,
        "683a13b33520ac18d1fa2a9b74610cd9eba169c76f5ce11db89079fc0298dbe3",
    ),
    "cifar100-lru14-2x": Published(
        "06884",
        "lrunet",
        {"width_mult": 2.0, "layer_reuse": 14},
        "cifar100",
        6884,
        "62d4b4e9b8f3feff7ceb56c9ccf2f675615d3b369f38f8161f414f6b890a0da0",
    ),
    "cifar100-mobilenet-0.4x": Published(
        "06054",
        "mobilenet",
        {"width_mult": 0.4},
        "cifar100",
        6054,
        "6e83e961e6b8fca0c8aaa1139bc9c4590fc260453f0a76b4ddcabca259b6846f",
    ),
    "cifar100-mobilenetv2-0.4x": Published(
        "06995",
        "mobilenet_v2",
        {"width_mult": 0.4},
        "cifar100",
        6995,
        "10ccf8c2bd1b33826ff563c66398f1f6466c4455fedc88e8bee45ecfdaa7777e",
    ),
    "cifar100-shufflenet-075x": Published(
        "06997",
        "shufflenet",
        {"width_mult": 0.75, "groups": 3},
        "cifar100",
        6997,
        "874d8911640f7dc52b9e33cfdb49cfa439655b22e8200103996a9850c59eb5ef",
    ),
    "cifar100-shufflenetv2-075x": Published(
        "06915",
        "shufflenet_v2",
        {"width_mult": 0.75},
        "cifar100",
        6915,
        "7e37d2159515ed2b59006fa43370afc197fb8e6991b2cfa5bfdf1e822ec82497",
    ),
    "fashionmnist-lru1": Published(
        "09117",
        "lrunet",
        {"width_mult": 1.0, "layer_reuse": 1},
        "fashion_mnist",
        9117,
        "f0b96bdedd6cf8027b4aaecf360ee8c32c7dd60d6224a603196850c306b7f58e",
    ),
    "fashionmnist-lru10": Published(
        "09346",
        "lrunet",
        {"width_mult": 1.0, "layer_reuse": 10},
        "fashion_mnist",
        9346,
        "aba6b4783ece6267aa761f6fff161b4cf651e005f92e6b3a842449aef1e2fe15",
    ),
    "fmnist-mobilenet-025x": Published(
        "09063",
        "mobilenet",
        {"width_mult": 0.25},
        "fashion_mnist",
        9063,
        "da4efd5270d2b0aa1056795b40af925e38a0dcc3fd955a3fde2e1ba044cd8ac9",
    ),
    "fmnist-mobilenetv2-025x": Published(
        "09343",
        "mobilenet_v2",
        {"width_mult": 0.25},
        "fashion_mnist",
        9343,
        "d81a5b21f16746d063f938b1e73658b7a47718f4e2529656aa4fc4a36d5a70d5",
    ),
    "fmnist-shufflenet-05x": Published(
        "09411",
        "shufflenet",
        {"width_mult": 0.5, "groups": 3},
        "fashion_mnist",
        9411,
        "077557ac9719d0db5c2ee58543fd4b6d3f7821a0cf88ab6eed5400db740943f1",
    ),
    "fmnist-shufflenetv2-025x": Published(
        "09342",
        "shufflenet_v2",
        {"width_mult": 0.25},
        "fashion_mnist",
        9342,
        "ea3346107e86a5479caccc721e7103bc803d748637f8083c4f5a366967330fb2",
    ),
}


def fetch(name: str) -> epath.Path:
    """The path of a published checkpoint, downloaded if it is not on this machine.

    It is looked for in the directory `LRUNET_CHECKPOINTS`, then in the user's cache.

    Raises:
      InputError: for an unknown name, if the file in `LRUNET_CHECKPOINTS` has another
        content, and if the download fails, is broken off, or is not the published
        file; no part of it is left then.
    """
    require_known("checkpoint", name, PUBLISHED)
    file = file_name(name)
    if directory := os.environ.get("LRUNET_CHECKPOINTS"):
        local = find_path("LRUNET_CHECKPOINTS", directory) / file
        if local.is_file():
            if find(local.read_bytes()) != name:
                raise InputError(
                    f"{local} is not the published file: its sha256 differs"
                )
            return local
    import pooch  # a network's worth of imports, for those who need it

    try:
        path = pooch.retrieve(
            BASE_URL + file,
            known_hash=f"sha256:{PUBLISHED[name].sha256}",
            fname=file,
            path=pooch.os_cache("lrunet_jax"),
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
        )
    except (OSError, ValueError) as error:  # of the network; of the hash
        raise InputError(
            f"checkpoint {name!r} can't be downloaded from {BASE_URL + file} "
            f"({in_one_line(error)}); try again, or put the file into the directory "
            "LRUNET_CHECKPOINTS"
        ) from None
    return epath.Path(path)


def published_accuracy(config: Mapping[str, Any]) -> float | None:
    """The accuracy that was published for a run's network and data set.

    Args:
      config: of the run, its fields by their dotted names.

    Returns:
      A fraction; None if there is none.
    """
    for entry in PUBLISHED.values():
        fields = {"model.name": entry.model, "dataset": entry.dataset}
        fields |= {f"model.{name}": value for name, value in entry.arguments.items()}
        if fields.items() <= config.items():
            return entry.accuracy
    return None


def file_name(name: str) -> str:
    """The file name of the checkpoint `name`."""
    return f"{name}-ckpt-{PUBLISHED[name].suffix}.t7"


def find(content: bytes) -> str:
    """The name of the checkpoint with this content; empty if there is none."""
    digest = hashlib.sha256(content).hexdigest()
    names = (name for name, entry in PUBLISHED.items() if entry.sha256 == digest)
    return next(names, "")
