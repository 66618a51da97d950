"""Data sets of TensorFlow Datasets, read without TensorFlow where that is possible."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import find_path, is_remote
from lrunet_jax.verbosity import unlogged


@unlogged()
def tfds_builder(name: str, data_dir: str, **kwargs: Any) -> Any:
    """The builder of the data set `name`.

    Args:
      name: of the set.
      data_dir: of TFDS; if empty `TFDS_DATA_DIR`, else ~/tensorflow_datasets.
      **kwargs: of `tfds.builder`.
    """
    import tensorflow_datasets as tfds  # a second's import, for those who need it

    return tfds.builder(name, data_dir=_directory(data_dir), **kwargs)


def open_split(
    name: str, split: str, data_dir: str
) -> tuple[list[str], Callable[[], dict[str, np.ndarray]]]:
    """The files of a split, which is prepared first if need be, and their decoder.

    Args:
      name: of the set.
      split: `train` or `test`.
      data_dir: as for `tfds_builder`.

    Returns:
      The paths of the files, and a function that decodes them into `image` (n, H, W,
      channels) and `label` (n,).

    Raises:
      InputError: where the directory lacks the split and it can't be prepared.
    """
    directory = _directory(data_dir)
    try:
        builder = tfds_builder(name, directory)
        is_prepared = builder.is_prepared()
    except Exception as error:  # remote storage has errors of its own
        if not is_remote(directory):
            raise
        reason = in_one_line(error)
        raise InputError(
            f"data_dir is {directory!r}, which can't be read: {reason}"
        ) from None
    if not is_prepared:
        builder = _prepare(name, directory)
    if split not in builder.info.splits:
        raise InputError(
            f"data_dir is {directory!r}, where {name} has no split {split!r}, only "
            f"{sorted(builder.info.splits)}; it must be prepared with both splits"
        )
    import tensorflow_datasets as tfds

    files = builder.info.splits[split].filepaths
    is_record = builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD

    def decode():
        with _local(builder, split) as local:
            if is_record:
                return _decode_array_records(local.as_data_source(split=split))
            return tfds.as_numpy(local.as_dataset(split=split, batch_size=-1))

    if is_record or _has_tensorflow():
        return files, decode
    raise InputError(
        f"data_dir is {directory!r}, where {name} is in tfrecord form, which needs "
        "TensorFlow to read: pip install tensorflow, or prepare it with "
        f"tfds.builder({name!r}, file_format='array_record')"
    )


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


@unlogged()
def _decode_array_records(source):
    # In one call: one by one, 60,000 records take 14 s and not 5.
    examples = source.__getitems__(range(len(source)))
    return {
        name: np.stack([example[name] for example in examples])
        for name in ("image", "label")
    }


def _prepare(name, directory):
    """Downloads and prepares, in the form that is read without TensorFlow."""
    lacks = f"data_dir is {directory!r}, which lacks {name}"
    if not _has_tensorflow():
        raise InputError(
            f"{lacks}; name the directory that TFDS has prepared it in, or let it be "
            "downloaded and prepared: pip install 'lrunet_jax[prepare]'"
        )
    builder = tfds_builder(name, directory, file_format="array_record")
    try:
        builder.download_and_prepare()
    except Exception as error:  # a network or a disk fails in many ways
        raise InputError(
            f"{lacks}; downloading and preparing it failed: {in_one_line(error)}"
        ) from error
    return builder


def _has_tensorflow():
    return importlib.util.find_spec("tensorflow") is not None
