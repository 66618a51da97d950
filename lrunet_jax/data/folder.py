"""Labelled pictures in a directory, of which each class has one of its own."""

import collections
import contextlib
import functools
import itertools
from collections.abc import Generator, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from etils import epath

from lrunet_jax.data.pictures import (
    SUFFIXES,
    BrokenPictureError,
    different_sizes,
    find_pictures,
    read_picture,
    read_size,
    stack,
    treated,
)
from lrunet_jax.data.source import Source
from lrunet_jax.errors import InputError, require, some
from lrunet_jax.files import find_path

THREADS = 8  # that decode; on remote storage they wait more than they compute
AHEAD = 2 * THREADS  # pictures at most, so that few of full size are in memory


class Folder(Source):
    """A data set of labelled pictures in a directory, see `list_folder`."""

    name = "folder"

    def __init__(self, data_dir: str, *, skip_broken: bool):
        """Lists the pictures.

        Args:
          data_dir: the directory.
          skip_broken: leave out, and count, those that can't be decoded.

        Raises:
          InputError: as `list_folder`, and without a directory.
        """
        allowed = "the directory of the pictures, as dataset is folder"
        require(bool(data_dir), "data_dir", data_dir, allowed)
        self._pictures = list_folder(find_path("data_dir", data_dir))
        self.directory, self.skips_broken = data_dir, skip_broken
        self.class_names = self._pictures.class_names
        self.splits = tuple(self._pictures.files)
        self.ignored = self._pictures.ignored

    def files(self, split: str) -> Sequence[epath.Path]:
        """The files of a split."""
        return self._pictures.files[split]

    def read(
        self, split: str, image_size: Sequence[int], channels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a split, see `Source`."""
        files, labels = self._pictures.files[split], self._pictures.labels[split]
        images, labels, broken = decode_folder(
            files, labels, image_size, self.skips_broken, channels
        )
        if broken:
            print(f"broken   {some(map(str, broken))}")
        return images, labels


class LabelledFiles(NamedTuple):
    """Labelled pictures in a directory.

    Attributes:
      class_names: in the order of their labels, which are numbers from 0.
      files: the paths of the pictures, for `train` and, where there is one, `test`.
      labels: (n,) int32 for each of these, of its pictures.
      ignored: paths of what is there beside them.
    """

    class_names: tuple[str, ...]
    files: dict[str, list[epath.Path]]
    labels: dict[str, np.ndarray]
    ignored: list[epath.Path]


def list_folder(directory: epath.Path) -> LabelledFiles:
    """Lists labelled pictures: `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` alone.

    Pictures are the files with `SUFFIXES`; other files are ignored, and so are
    directories in a CLASS, and beside `train`. A `train` without directories stands
    for a class where there are classes beside it, like `car` and `ship`.

    Args:
      directory: of the pictures.

    Returns:
      The pictures, class by class and by their names. Classes are sorted by name.

    Raises:
      InputError: if the directory is missing, has fewer than two classes, or one
        without pictures to train on; or if `test` has no pictures, or a class that
        `train` has not.
    """
    refuse = functools.partial(_refusal, directory)
    if not directory.is_dir():
        raise refuse("which is not there", "be a directory of pictures")
    root = _split_directory(directory, "train")
    classes = _directories(root or directory)
    layout = "train/CLASS" if root else "CLASS"
    if len(classes) < 2:
        found = f"only the class {classes[0].name!r}" if classes else "no classes"
        needed = f"have two or more directories {layout}, with pictures in each"
        raise refuse(f"which has {found}", needed)
    pictures = {path.name: find_pictures(path) for path in classes}
    names = tuple(pictures)
    for name in names:
        if not pictures[name]:
            wanted = f"have some in each {layout}: {' '.join(SUFFIXES)}"
            raise refuse(f"whose class {name!r} has no pictures", wanted)
    splits = {"train": pictures}
    test = _split_directory(directory, "test") if root else None
    if test:
        splits["test"] = _list_test(test, names, refuse)
    files = {split: [*itertools.chain(*of.values())] for split, of in splits.items()}
    labels = {split: _labels(of, names) for split, of in splits.items()}
    taken = {*itertools.chain(*files.values())}
    roots = [root, *([test] if test else [])] if root else [directory]
    beside = [p for p in _directories(directory) if root and p not in roots]
    within = [p for r in roots for d in _directories(r) for p in d.iterdir()]
    others = [p for p in within if p not in taken and not p.name.startswith(".")]
    return LabelledFiles(names, files, labels, [*beside, *others])


def decode_folder(
    files: Sequence[epath.Path],
    labels: np.ndarray,
    image_size: Sequence[int],
    skip_broken: bool,
    channels: int = 0,
) -> tuple[np.ndarray, np.ndarray, list[epath.Path]]:
    """Decodes labelled pictures, each of them resized first, then made grey or colour.

    Args:
      files: n paths of pictures.
      labels: (n,) int32.
      image_size: [H, W] to resize to, in pixels; where it is empty all pictures must
        have the same size.
      skip_broken: whether files that can't be decoded are left out. One that can't be
        read at all is not: the next time it might be.
      channels: 1 or 3; with 0 it is 1 where all pictures are grey, else 3.

    Returns:
      Images (kept, H, W, channels) uint8 in the order of `files`, their labels (kept,)
      int32, and the files left out.

    Raises:
      InputError: for the first file that can't be decoded, unless they are skipped; if
        no file is left; for a file that can't be read; and if the sizes differ and
        `image_size` is empty.
    """
    kept, broken, why, differs = [], [], "", False
    pictures: collections.deque[np.ndarray] = collections.deque()
    with contextlib.closing(_read_all(files, image_size, channels)) as results:
        for place, result in enumerate(results):
            if isinstance(result, BrokenPictureError):
                if not skip_broken:
                    raise InputError(
                        f"{result}; --config.skip_broken leaves such files out"
                    )
                broken.append(files[place])
                why = why or f"; of the first: {result}"
                continue
            # Here, and not at the end: large pictures might not all fit the memory.
            differs = bool(pictures) and result.shape[:2] != pictures[0].shape[:2]
            if differs:
                break
            pictures.append(result)
            kept.append(place)
    if differs:
        raise InputError(_different_sizes(files))
    if not kept:
        raise InputError(f"none of {len(files)} pictures can be read{why}")
    return stack(pictures, "folder"), labels[kept], broken


def _refusal(directory, found, needed):
    return InputError(f"data_dir is {str(directory)!r:.300}, {found}; it must {needed}")


def _directories(directory):
    paths = [path for path in directory.iterdir() if path.is_dir()]
    return sorted(
        (p for p in paths if not p.name.startswith(".") and p.name != "__MACOSX"),
        key=lambda path: path.name,
    )


def _split_directory(directory, split):
    """The directory of a split, or None where it stands for a class, or isn't there."""
    path = directory / split
    if not path.is_dir():
        return None
    beside = {other.name for other in _directories(directory)} - {"train", "test"}
    return None if beside and not _directories(path) else path


def _list_test(directory, names, refuse):
    pictures = {path.name: find_pictures(path) for path in _directories(directory)}
    unknown = sorted(pictures.keys() - {*names})
    if unknown:
        known = "have directories in test that are in train as well"
        raise refuse(f"whose test has a class {unknown[0]!r} that train has not", known)
    if not any(pictures.values()):
        wanted = "have some in test/CLASS, or no directory test"
        raise refuse("whose test has no pictures", wanted)
    return pictures


def _labels(pictures, names):
    counts = [len(pictures.get(name, ())) for name in names]
    return np.repeat(np.arange(len(names), dtype=np.int32), counts)


def _read_all(
    files: Sequence[epath.Path], image_size: Sequence[int], channels: int
) -> Generator[np.ndarray | BrokenPictureError, None, None]:
    """Reads pictures in threads, and gives them, or what is broken, in their order."""

    def read(path):
        try:
            return treated(read_picture(path), image_size, channels)
        except BrokenPictureError as error:
            return error

    waiting: collections.deque[futures.Future] = collections.deque()
    pool = futures.ThreadPoolExecutor(THREADS)
    try:
        for path in files:
            waiting.append(pool.submit(read, path))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _different_sizes(files):
    """The message that sizes differ, with the most frequent ones."""

    def size(path):
        with contextlib.suppress(Exception):  # a broken file has no size
            return read_size(path)

    with futures.ThreadPoolExecutor(THREADS) as pool:
        counts = collections.Counter(filter(None, pool.map(size, files)))
    return f"folder {different_sizes(counts)}"
