"""Data sets of TensorFlow Datasets, read without TensorFlow where that is possible."""

import contextlib
import difflib
import importlib.util
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from etils import epath

from lrunet_jax.data.info import KNOWN
from lrunet_jax.data.pictures import stack, treated
from lrunet_jax.data.source import Source
from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import find_path, is_remote
from lrunet_jax.verbosity import unlogged


class TfdsSet(Source):
    """A data set of TFDS with an `image` and a `label`, prepared first if need be.

    A directory that TFDS has prepared in array_record form is read without TensorFlow.
    TensorFlow is needed to read one in tfrecord form, and to download and prepare a
    data set that is not there.
    """

    def __init__(self, name: str, data_dir: str):
        """Opens the set.

        Args:
          name: of the set, perhaps with its config, like `emnist/letters`.
          data_dir: of TFDS; by default `TFDS_DATA_DIR`, else ~/tensorflow_datasets.

        Raises:
          InputError: if TFDS does not know it, its images or labels are of another
            kind, or it is not in the directory and can't be prepared.
        """
        self.name, self.directory = name, _directory(data_dir)
        self._builder = self._open()
        features = self._builder.info.features
        self._require_images(features)
        import tensorflow_datasets as tfds

        form = self._builder.info.file_format
        self._is_record = form is tfds.core.FileFormat.ARRAY_RECORD
        if not self._is_record and not _has_tensorflow():
            raise InputError(
                f"data_dir is {self.directory!r}, where {name} is in tfrecord form, "
                "which needs TensorFlow to read: pip install tensorflow, or prepare it "
                f"with tfds.builder({name!r}, file_format='array_record')"
            )
        self.class_names = tuple(features["label"].names)
        self.splits = sorted(self._builder.info.splits)

    def files(self, split: str) -> Sequence[epath.Path]:
        """The files of a split."""
        return [epath.Path(f) for f in self._builder.info.splits[split].filepaths]

    @unlogged()
    def read(
        self, split: str, image_size: Sequence[int], channels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a split, see `Source`."""
        import tensorflow_datasets as tfds

        with _local(self._builder, split) as builder:
            if self._is_record:
                examples = _array_records(builder.as_data_source(split=split))
            else:
                examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
        labels = np.array([example["label"] for example in examples], np.int32)
        images = (treated(e["image"], image_size, channels) for e in examples)
        return stack(images, f"{self.name} ({split})"), labels

    def _open(self):
        try:
            builder = _builder(self.name, self.directory)
            is_prepared = builder.is_prepared()
        except Exception as error:  # of names, and remote storage has errors of its own
            near = difflib.get_close_matches(self.name, (*KNOWN, "folder"), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            reason = in_one_line(error)
            if reason.startswith("DatasetNotFoundError"):  # which lists a thousand sets
                reason = "it is none that TFDS knows"
            raise InputError(
                f"dataset is {self.name!r}{hint}, which can't be opened in data_dir "
                f"{self.directory!r}: {reason}; it must be digits, folder, or a set "
                "that TFDS has prepared there"
            ) from None
        return builder if is_prepared else _prepare(self.name, self.directory)

    def _require_images(self, features):
        import tensorflow_datasets as tfds

        has = lambda name, kind: name in features and isinstance(features[name], kind)
        if has("image", tfds.features.Image) and has("label", tfds.features.ClassLabel):
            shape, dtype = features["image"].shape, features["image"].np_dtype
            if len(shape) == 3 and shape[2] in (1, 3) and dtype == np.uint8:
                return
        raise InputError(
            f"dataset is {self.name!r}, whose features are "
            f"{' '.join(str(features).split())!s:.200}; it must have an image of uint8 "
            "with 1 or 3 channels and a label of classes"
        )


@unlogged()
def _builder(name, directory, **kwargs):
    import tensorflow_datasets as tfds  # a second's import, for those who need it

    return tfds.builder(name, data_dir=directory, **kwargs)


def _directory(data_dir):
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return str(find_path("data_dir", data_dir))


@contextlib.contextmanager
def _local(builder, split):
    """The builder, of a copy if it is on remote storage: array_record needs one."""
    if not is_remote(builder.data_dir):
        yield builder
        return
    import tensorflow_datasets as tfds

    with tempfile.TemporaryDirectory() as name:
        facts = [
            p for p in builder.data_path.iterdir() if p.suffix in (".json", ".txt")
        ]
        for file in [*facts, *builder.info.splits[split].filepaths]:
            (epath.Path(name) / file.name).write_bytes(file.read_bytes())
        yield tfds.builder_from_directory(name)


def _array_records(source):
    # In one call: one by one, 60,000 records take 14 s and not 5.
    return source.__getitems__(range(len(source)))


def _prepare(name, directory):
    """Downloads and prepares, in the form that is read without TensorFlow."""
    lacks = f"data_dir is {directory!r}, which lacks {name}"
    if not _has_tensorflow():
        raise InputError(
            f"{lacks}; name the directory that TFDS has prepared it in, or let it be "
            "downloaded and prepared: pip install 'lrunet_jax[prepare]'"
        )
    builder = _builder(name, directory, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # a network or a disk fails in many ways
        raise InputError(
            f"{lacks}; downloading and preparing it failed: {in_one_line(error)}"
        ) from error
    return builder


def _has_tensorflow():
    return importlib.util.find_spec("tensorflow") is not None
