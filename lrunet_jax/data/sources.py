"""Data sets as arrays: from a name and a split to uint8 images and labels."""

import contextlib
import hashlib
import io
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import platformdirs
from etils import epath

from lrunet_jax.data.digits import read_digits
from lrunet_jax.data.info import dataset_info
from lrunet_jax.data.tfds import open_split
from lrunet_jax.files import one_at_a_time, write_whole


class Split(NamedTuple):
    """Images (n, H, W, channels) uint8 and labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray


def load_split(name: str, split: str, data_dir: str = "") -> Split:
    """Reads a whole split: `digits` from this package, any other set through TFDS.

    A directory that TFDS has prepared in array_record form is read without
    TensorFlow. TensorFlow is needed to read one in tfrecord form, and to download and
    prepare a data set that is not there. A decoded split is kept in the user's cache.
    Of several processes of a machine one prepares and decodes, and the others wait.

    Args:
      name: a data set that `dataset_info` knows.
      split: `train` or `test`.
      data_dir: of TFDS; by default `TFDS_DATA_DIR`, else ~/tensorflow_datasets.

    Raises:
      InputError: for an unknown name, and where `data_dir` lacks the split and it
        can't be prepared.
    """
    dataset_info(name)
    if name == "digits":
        return Split(*read_digits(split))
    cache = platformdirs.user_cache_path("lrunet_jax") / "images"
    with one_at_a_time(cache / f"{name}.lock"):
        files, decode = open_split(name, split, data_dir)
        return _decoded_once(cache, f"{name}-{split}", files, decode)


def digest(splits: Sequence[Split]) -> str:
    """The SHA-256 of all images and labels of some splits."""
    total = hashlib.sha256()
    for split in splits:
        for array in split:
            total.update(f"{array.dtype} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _decoded_once(
    directory: pathlib.Path,
    name: str,
    files: list[str],
    decode: Callable[[], dict[str, np.ndarray]],
) -> Split:
    """Decodes `files` once and keeps the split: decoding takes half of a start."""
    stats = [epath.Path(file).stat() for file in files]
    key = repr([(f, s.length, s.mtime) for f, s in zip(files, stats, strict=True)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
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
        write_whole(path, content.getvalue())
    return split
