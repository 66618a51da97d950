"""Data sets as arrays: a name and a split -> uint8 images and labels."""

import contextlib
import hashlib
import importlib.util
import io
import os
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import platformdirs
from etils import epath

from lrunet_jax.errors import InputError, require_known
from lrunet_jax.whole_file import write_whole_file

NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10, "fashion_mnist": 10}
IMAGE_SHAPES = {  # (H, W, channels)
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
    "digits": (32, 32, 1),
    "fashion_mnist": (28, 28, 1),
}


class Split(NamedTuple):
    """Images (n, H, W, channels) uint8 and labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray


def load_split(name: str, split: str, data_dir: str = "") -> Split:
    """Reads a whole split: of `digits` from this package, else through TFDS.

    A directory that TFDS has prepared in array_record form is read without
    TensorFlow. TensorFlow reads one in tfrecord form, and downloads and prepares a
    data set that is not there yet. Decoded once, a split is kept in the user's cache.

    Args:
      name: one of `NUM_CLASSES`.
      split: `train` or `test`.
      data_dir: of TFDS; by default `TFDS_DATA_DIR`, else ~/tensorflow_datasets.

    Raises:
      InputError: for an unknown name, and where `data_dir` lacks the split and it
        can't be prepared.
    """
    require_known("dataset", name, NUM_CLASSES)
    if name == "digits":
        return _read_digits(split)
    return _read_tfds(name, split, _tfds_dir(data_dir))


def class_names(name: str, data_dir: str = "") -> list[str]:
    """What the labels mean, in their order; arguments as for `load_split`."""
    require_known("dataset", name, NUM_CLASSES)
    if name == "digits":
        return list("0123456789")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=_tfds_dir(data_dir))
    return builder.info.features["label"].names


def input_stats(split: Split) -> dict[str, np.ndarray]:
    """`mean` and `std` (channels,) float32 of a split's images, in [0, 1]."""
    channels = np.moveaxis(np.asarray(split.images), -1, 0)
    counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])
    shares, levels = counts / counts[0].sum(), np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt(shares @ levels**2 - mean**2)
    return {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}


def _tfds_dir(data_dir):
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return os.path.expanduser(data_dir)


def _read_digits(split: str) -> Split:
    """The UCI handwritten digits: 1,437 to train, 360 to test, 32x32, grey.

    The file holds 8x8 images from 0 to 16, with their source and licence. They are
    enlarged bilinearly here.
    """
    with np.load(pathlib.Path(__file__).with_name("digits.npz")) as file:
        images, labels = file["images"], file["labels"].astype(np.int32)
    # Each of the 32 new pixels lies between two old ones; the edge is repeated.
    positions = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(8)))
    images = np.round(weights @ images @ weights.T * (255 / 16)).astype(np.uint8)
    rows = {"train": slice(0, 1437), "test": slice(1437, None)}[split]
    return Split(images[rows, ..., None], labels[rows])


def _read_tfds(name: str, split: str, data_dir: str) -> Split:
    import tensorflow_datasets as tfds  # a second's import, for those who need it

    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        builder = _prepare(tfds, name, data_dir)
    if split not in builder.info.splits:
        raise InputError(
            f"data_dir is {data_dir!r}, where {name} has no split {split!r}, only "
            f"{sorted(builder.info.splits)}; it must be prepared with both splits"
        )
    files = builder.info.splits[split].filepaths
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        decode = lambda: _decode_array_records(builder.as_data_source(split=split))
    elif _has_tensorflow():
        decode = lambda: tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    else:
        raise InputError(
            f"data_dir is {data_dir!r}, where {name} is in tfrecord form, which needs "
            "TensorFlow to read: pip install tensorflow, or prepare it with "
            f"tfds.builder({name!r}, file_format='array_record')"
        )
    return _decoded_once(f"{name}-{split}", files, decode)


def _decode_array_records(source: Any) -> dict[str, np.ndarray]:
    # In one call: one by one, 60,000 records take 14 s and not 5.
    examples = source.__getitems__(range(len(source)))
    return {
        name: np.stack([example[name] for example in examples])
        for name in ("image", "label")
    }


def _decoded_once(
    name: str, files: list[str], decode: Callable[[], dict[str, np.ndarray]]
) -> Split:
    """The split that is in `files`: decoding takes as long as all else of a start."""
    stats = [epath.Path(file).stat() for file in files]
    key = repr([(f, s.length, s.mtime) for f, s in zip(files, stats, strict=True)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    directory = platformdirs.user_cache_path("lrunet_jax") / "images"
    path = directory / f"{name}-{digest}.npz"
    absent = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # or broken
    with contextlib.suppress(*absent), path.open("rb") as file:
        kept = np.load(file)
        return Split(kept["images"], kept["labels"])
    examples = decode()
    split = Split(examples["image"], examples["label"].astype(np.int32))
    content = io.BytesIO()
    np.savez(content, images=split.images, labels=split.labels)
    with contextlib.suppress(OSError):  # a cache that can't be written is none
        directory.mkdir(parents=True, exist_ok=True)
        write_whole_file(path, content.getvalue())
    return split


def _prepare(tfds: Any, name: str, data_dir: str) -> Any:
    """Downloads and prepares, in the form that is read without TensorFlow."""
    lacks = f"data_dir is {data_dir!r}, which lacks {name}"
    if not _has_tensorflow():
        raise InputError(
            f"{lacks}; name the directory that TFDS has prepared it in, or let it be "
            "downloaded and prepared: pip install 'lrunet_jax[prepare]'"
        )
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # a network or a disk fails in many ways
        raise InputError(
            f"{lacks}; downloading and preparing it failed: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}"
        ) from error
    return builder


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None
