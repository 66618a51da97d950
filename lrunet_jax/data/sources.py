"""Data sets as arrays: from a name to uint8 images and labels."""

import contextlib
import functools
import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import platformdirs
from etils import epath

from lrunet_jax.data.digits import Digits
from lrunet_jax.data.folder import Folder
from lrunet_jax.data.hold_out import hold_out
from lrunet_jax.data.info import DatasetInfo
from lrunet_jax.data.source import Source
from lrunet_jax.data.tfds import TfdsSet
from lrunet_jax.errors import InputError, require, some
from lrunet_jax.files import one_at_a_time, write_whole
from lrunet_jax.models.layers import MAX_CLASSES

TEST_SHARE = 0.1  # of a set that has no test split
_OF_TEST, _OF_VALIDATION = 0, 1  # beside the seed


class Split(NamedTuple):
    """Images (n, H, W, channels) uint8 and labels (n,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, places: np.ndarray) -> "Split":
        """The images at some places, in their order."""
        return Split(self.images[places], self.labels[places])


class Dataset(NamedTuple):
    """A data set to train on.

    Attributes:
      info: the facts about it.
      train: the training set.
      validation: what was held out of it; perhaps no images.
      test: the test set.
    """

    info: DatasetInfo
    train: Split
    validation: Split
    test: Split


def open_source(name: str, data_dir: str = "", *, skip_broken: bool = False) -> Source:
    """Opens a data set: `digits`, `folder`, or one of TFDS, perhaps prepared first.

    Args:
      name: of the set.
      data_dir: of TFDS; by default `TFDS_DATA_DIR`, else ~/tensorflow_datasets. For
        `folder` the directory of the pictures.
      skip_broken: leave out the pictures of a folder that can't be decoded.

    Raises:
      InputError: if there is none of that name, or it has no labelled images.
    """
    if name == "digits":
        return Digits()
    if name == "folder":
        return Folder(data_dir, skip_broken=skip_broken)
    with _one_at_a_time(name):
        return TfdsSet(name, data_dir)


def load_split(
    name: str,
    split: str,
    data_dir: str = "",
    *,
    image_size: Sequence[int] = (),
    channels: int = 0,
    split_seed: int = 0,
    skip_broken: bool = False,
) -> Split:
    """Opens a data set and reads a whole split, see `open_source` and `read_split`."""
    source = open_source(name, data_dir, skip_broken=skip_broken)
    return read_split(
        source,
        split,
        image_size=image_size,
        channels=channels,
        split_seed=split_seed,
    )


def read_split(
    source: Source,
    split: str,
    *,
    image_size: Sequence[int] = (),
    channels: int = 0,
    split_seed: int = 0,
) -> Split:
    """Reads a whole split; a decoded one is kept in the user's cache.

    Of several processes of a machine one decodes, and the others wait. A set without a
    test split gives a tenth of its training images for one, drawn by `split_seed` and
    the labels.

    Args:
      source: the set.
      split: `train` or `test`.
      image_size: [H, W] to resize to; empty for the size that all images have.
      channels: 1 or 3; 0 for those of the set.
      split_seed: of the test split that is drawn.

    Raises:
      InputError: for what can't be read.
    """
    name = source.name
    drawn = split == "test" and split not in source.splits
    stored = "train" if drawn else split
    if stored not in source.splits:
        raise InputError(
            f"data_dir is {source.directory!r}, where {name} has no split {stored!r}, "
            f"only {sorted(source.splits)}; it must be prepared with that"
        )
    files = source.files(stored)
    decode = lambda: Split(*source.read(stored, image_size, channels))
    # The labels of a folder's test images follow from the classes to train on.
    how = f"{source.class_names} {list(image_size)} {channels} {source.skips_broken}"
    with _one_at_a_time(name):
        found = _decoded_once(name, stored, files, how, decode) if files else decode()
    skipped = len(files) - len(found.labels) if source.skips_broken else 0
    if skipped and not drawn:
        print(f"skipped  {skipped:,} of {len(files):,} pictures, which can't be read")
    classes, labels = len(source.class_names), found.labels
    unknown = labels[(labels < 0) | (labels >= classes)]
    if unknown.size:
        raise InputError(
            f"a label of {name} ({stored}) is {unknown[0]}; it must be in "
            f"[0, {classes}), as there are so many classes"
        )
    if "test" in source.splits:
        return found
    count = max(1, round(TEST_SHARE * len(labels)))
    kept, held = _hold_out(found, count, (split_seed, _OF_TEST), "the test split")
    return held if drawn else kept


def load_dataset(
    name: str,
    data_dir: str = "",
    *,
    image_size: int = 0,
    validation: float = 0.0,
    split_seed: int = 0,
    skip_broken: bool = False,
) -> Dataset:
    """Reads a data set to train on.

    Args:
      name: see `open_source`, also for `data_dir` and `skip_broken`.
      data_dir: of the set.
      image_size: S to resize all images to S x S; 0 for the size that they have.
      validation: the images to hold out of the training set, or their share if it is
        below 1.
      split_seed: by which they are drawn, see `hold_out`.
      skip_broken: leave out what can't be decoded.

    Raises:
      InputError: as `read_split`, for images of several sizes, and for more to hold
        out than there is.
    """
    source = open_source(name, data_dir, skip_broken=skip_broken)
    size = (image_size, image_size) if image_size else ()
    read = functools.partial(read_split, source, image_size=size, split_seed=split_seed)
    train = read("train")
    if source.ignored:
        listed = some(map(str, source.ignored))
        count = len(source.ignored)
        print(f"ignored  {count:,} in {data_dir} beside its pictures: {listed}")
    # What is drawn from the training images has their channels.
    channels = train.images.shape[3] if "test" in source.splits else 0
    test = read("test", channels=channels)
    return make_dataset(name, source.class_names, train, test, validation, split_seed)


def dataset_of_arrays(
    splits: Sequence[Sequence[np.ndarray]], validation: float, split_seed: int
) -> Dataset:
    """Makes a data set of arrays: ((images, labels), (images, labels)).

    Args:
      splits: to train and to test on: images (n, H, W, 1 or 3) uint8 and labels (n,)
        of whole numbers from 0.
      validation: as for `load_dataset`.
      split_seed: as for `load_dataset`.

    Raises:
      InputError: for anything else.
    """
    found = []
    is_pairs = len(splits) == 2 and all(len(arrays) == 2 for arrays in splits)
    shape = [len(arrays) for arrays in splits]
    allowed = "((images, labels), (images, labels)), to train and to test on"
    require(is_pairs, "data, of parts of lengths", shape, allowed)
    for name, arrays in zip(("train", "test"), splits, strict=True):
        try:
            images, labels = map(np.asarray, arrays)
        except ValueError as error:  # of lists of several lengths
            raise InputError(f"data ({name}) is no array: {error}") from None
        form = (
            f"{images.dtype}{list(images.shape)} and {labels.dtype}{list(labels.shape)}"
        )
        allowed = "uint8 images [n, H, W, 1 or 3] and n integer labels, n at least 1"
        is_sound = (
            images.dtype == np.uint8
            and images.ndim == 4
            and images.shape[3] in (1, 3)
            and min(images.shape) > 0
            and labels.dtype.kind in "iu"
            and labels.shape == images.shape[:1]
        )
        require(is_sound, f"data ({name})", form, allowed)
        for label in (int(labels.min()), int(labels.max())):
            is_small = 0 <= label < MAX_CLASSES
            require(is_small, f"labels ({name})", label, f"in [0, {MAX_CLASSES})")
        found.append(Split(images, labels.astype(np.int32)))
    train, test = found
    most = int(train.labels.max())
    allowed = f"at most {most}, as in the training set"
    require(test.labels.max() <= most, "labels (test)", int(test.labels.max()), allowed)
    names = tuple(map(str, range(most + 1)))
    return make_dataset("arrays", names, train, test, validation, split_seed)


def make_dataset(
    name: str,
    class_names: tuple[str, ...],
    train: Split,
    test: Split,
    validation: float,
    split_seed: int,
) -> Dataset:
    """Makes a data set of its splits; the arguments are those of `load_dataset`."""
    sides = lambda split: "x".join(map(str, split.images.shape[1:]))
    require(
        sides(train) == sides(test),
        "the shape of test images",
        sides(test),
        f"{sides(train)}, as of training images; --config.image_size resizes both",
    )
    total = digest((train, test))
    count = round(validation * len(train.labels)) if validation < 1 else int(validation)
    if validation:
        seed = (split_seed, _OF_VALIDATION)
        train, held = _hold_out(train, max(1, count), seed, "validation")
    else:
        held = train.take(np.zeros(0, int))
    info = DatasetInfo(
        name=name,
        image_shape=train.images.shape[1:],
        class_names=class_names,
        num_images=(len(train.labels), len(test.labels)),
        num_validation=len(held.labels),
        digest=total,
        test_digest=digest((test,)),
    )
    return Dataset(info, train, held, test)


def digest(splits: Sequence[Split]) -> str:
    """The SHA-256 of all images and labels of some splits."""
    total = hashlib.sha256()
    for split in splits:
        for array in split:
            total.update(f"{array.dtype} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _hold_out(split, count, seed, field):
    most = len(split.labels) - len(np.unique(split.labels))
    allowed = f"at most {most}, as each class keeps an image to train on"
    require(count <= most, field, count, allowed)
    kept, held = hold_out(split.labels, count, seed)
    return split.take(kept), split.take(held)


def _cache():
    return platformdirs.user_cache_path("lrunet_jax") / "images"


def _file_name(name):
    return name.replace("/", "-")


def _one_at_a_time(name):
    return one_at_a_time(_cache() / f"{_file_name(name)}.lock")


def _decoded_once(
    name: str,
    split: str,
    files: Sequence[epath.Path],
    how: str,
    decode: Callable[[], Split],
) -> Split:
    """Decodes `files` once and keeps the split: decoding takes half of a start."""
    stats = [file.stat() for file in files]
    key = [(str(f), s.length, s.mtime) for f, s in zip(files, stats, strict=True)]
    digest_of_files = hashlib.sha256(f"{key} {how}".encode()).hexdigest()[:16]
    path = _cache() / f"{_file_name(name)}-{split}-{digest_of_files}.npz"
    absent = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # or broken
    with contextlib.suppress(*absent), path.open("rb") as file:
        kept = np.load(file)
        return Split(kept["images"], kept["labels"])
    found = decode()
    content = io.BytesIO()
    np.savez(content, images=found.images, labels=found.labels)
    with contextlib.suppress(OSError):  # a cache that can't be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    return found
