"""PyTorch's files, read and written with NumPy alone.

`torch.save` has had two containers, and both are read here: the legacy one, a row of
pickles followed by the raw storages, and the zip archive of today, which is also the
one written. The pickles are read and written in `torch_pickle`.
"""

import io
import os
import zipfile
from typing import Any

import numpy as np
from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import write_whole
from lrunet_jax.weights.torch_pickle import Interpreter, opcodes

# More than files of weights need, and little enough for any content to be harmless.
MAX_BYTES = 1 << 26  # of a file; the networks here have about a million weights
MAX_ENTRIES = 100_000  # of a zip archive; one a tensor

_MAGIC = 0x1950A86A20F9469CFC6C  # of the legacy container
_LEGACY_VERSION = 1001
_ALIGNMENT = 64  # of a storage within the zip archive, so that it can be mapped


def read(path: str | os.PathLike) -> Any:
    """Reads what `torch.save` put into a file, with tensors as NumPy arrays.

    The arrays have the bits and the shapes of `torch.load(weights_only=True)`.
    Parameters become arrays, an OrderedDict and a Counter dicts, a device its name, a
    `torch.Size` a tuple, and NumPy's scalars numbers. Of what PyTorch would
    load, quantised, complex, sparse and expanded tensors are refused.

    Raises:
      InputError: for a file that can't be read, is damaged, is larger than MAX_BYTES,
        or holds anything but tensors, numbers, strings and plain containers.
    """
    return loads(read_bytes(path), path)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a file of at most MAX_BYTES.

    Raises:
      InputError: for a larger one, or what is no file or can't be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
        raise InputError(f"{path} is no file")
    try:
        with epath.Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except Exception as error:  # remote storage has errors of its own
        raise InputError(f"{path} can't be read: {in_one_line(error)}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes")
    return data


def loads(data: bytes, path: str | os.PathLike) -> Any:
    """Does what `read` does, from the content of the file `path`."""
    try:
        tree = _read_zip(data) if data.startswith(b"PK") else _read_legacy(data)
        _require_plain(tree)
    except InputError as error:
        raise InputError(f"{path} is not a PyTorch file of weights: {error}") from None
    except Exception as error:  # damage has many names
        raise InputError(f"{path} is damaged: {in_one_line(error)}") from None
    return tree


def write(path: str | os.PathLike, tree: Any) -> None:
    """Writes dicts, lists, numbers, strings and arrays as a zip container.

    The same content gives the same bytes. The file appears whole or not at all.

    Raises:
      InputError: if it can't be written.
    """
    storages: list[np.ndarray] = []
    entries = {"data.pkl": b"\x80\x02" + opcodes(tree, storages) + b"."}
    entries["byteorder"] = b"little"
    entries |= {f"data/{i}": array.tobytes() for i, array in enumerate(storages)}
    entries["version"] = b"3\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            # The local header: 30 bytes, the name, and this extra field.
            start = file.tell() + 30 + len(info.filename) + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, content)
    try:
        write_whole(path, file.getvalue())
    except Exception as error:  # remote storage has errors of its own
        raise InputError(f"{path} can't be written: {in_one_line(error)}") from None


# --- The containers ---------------------------------------------------------------


def _read_zip(data: bytes) -> Any:
    if data.count(b"PK\x01\x02") > MAX_ENTRIES:  # each begins an entry's header
        raise InputError(f"it is a zip archive of more than {MAX_ENTRIES:,} entries")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise InputError("the zip archive has not one data.pkl")
        root = pickles[0].removesuffix("data.pkl")

        def entry(name: str) -> bytes:
            info = archive.getinfo(root + name)
            # Stored only, as PyTorch does: a compressed entry may unpack to anything.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise InputError(
                    f"entry {name!r:.90} is compressed or larger than the file"
                )
            return archive.read(info)

        if f"{root}byteorder" in archive.namelist() and entry("byteorder") != b"little":
            raise InputError("its byte order is not little-endian")
        machine = Interpreter(len(data))
        tree = machine.run(io.BytesIO(entry("data.pkl")))
        for key, storage in machine.storages.items():
            _fill(storage, entry(f"data/{key}"), key)
    return tree


def _read_legacy(data: bytes) -> Any:
    file = io.BytesIO(data)
    if not data.startswith(b"\x80") or Interpreter(0).run(file) != _MAGIC:
        raise InputError("it begins neither as the legacy nor as the zip container")
    if Interpreter(0).run(file) != _LEGACY_VERSION:
        raise InputError(f"its version is not {_LEGACY_VERSION}")
    if Interpreter(0).run(file).get("little_endian") is not True:
        raise InputError("its byte order is not little-endian")
    machine = Interpreter(len(data))
    tree = machine.run(file)
    keys = Interpreter(0).run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError("no list of storages follows")
    if len(keys) != len(machine.storages) or set(keys) != machine.storages.keys():
        raise InputError("the storages that follow are not those that tensors refer to")
    for key in keys:
        storage = machine.storages[key]
        if int.from_bytes(file.read(8), "little", signed=True) != storage.size:
            raise InputError(
                f"storage {key!r:.90} is not of the size that its tensors expect"
            )
        _fill(storage, file.read(storage.nbytes), key)
    if rest := len(data) - file.tell():
        raise InputError(f"{rest:,} bytes follow the last storage")
    return tree


def _fill(storage: np.ndarray, content: bytes, key: str) -> None:
    if len(content) != storage.nbytes:
        raise InputError(
            f"storage {key!r:.90} has {len(content):,} bytes, not {storage.nbytes:,}"
        )
    storage[:] = np.frombuffer(content, storage.dtype)


def _require_plain(tree: Any) -> None:
    """Refuses types and functions, which may occur within a pickle, as its result."""
    seen: set[int] = set()
    todo = [tree]
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list | tuple):
            if id(value) not in seen:  # containers may contain each other
                seen.add(id(value))
                todo.extend(value.values() if isinstance(value, dict) else value)
        elif not isinstance(value, np.ndarray | str | int | float | None):
            raise InputError("a function, a type or bytes as a value")
