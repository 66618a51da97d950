"""PyTorch's files, read and written with NumPy alone.

`torch.save` has had two containers, and both are read here: the legacy one, a row of
pickles followed by the raw storages, and the zip archive of today, which is also the
one written. A pickle is a program, so it is not given to `pickle`, but to a small
interpreter: it knows tensors, numbers, strings and plain containers, and a few types
that training loops store beside them, and refuses anything else without running it.
"""

import io
import math
import os
import pathlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import write_whole

# More than files of weights need, and little enough for any content to be harmless.
MAX_BYTES = 1 << 26  # of a file; the networks here have about a million weights
MAX_OPCODES = 1_000_000  # of a pickle; some 40 a tensor
MAX_ENTRIES = 100_000  # of a zip archive; one a tensor
MAX_LENGTH = 1000  # of a string
MAX_BITS = 80  # of an integer; _MAGIC has them
MAX_NDIM = 32

_MAGIC = 0x1950A86A20F9469CFC6C  # of the legacy container
_LEGACY_VERSION = 1001
_ALIGNMENT = 64  # of a storage within the zip archive, so that it can be mapped

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


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
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from None
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
    entries = {"data.pkl": b"\x80\x02" + _opcodes(tree, storages) + b"."}
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
    path = pathlib.Path(path)
    try:
        write_whole(path, file.getvalue())
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from None


# --- The containers ---------------------------------------------------------------


def _read_zip(data: bytes) -> Any:
    if data.count(b"PK\x01\x02") > MAX_ENTRIES:  # each begins an entry's header
        _refuse(f"it is a zip archive of more than {MAX_ENTRIES:,} entries")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            _refuse("the zip archive has not one data.pkl")
        root = pickles[0].removesuffix("data.pkl")

        def entry(name: str) -> bytes:
            info = archive.getinfo(root + name)
            # Stored only, as PyTorch does: a compressed entry may unpack to anything.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                _refuse(f"entry {name!r:.90} is compressed or larger than the file")
            return archive.read(info)

        if f"{root}byteorder" in archive.namelist() and entry("byteorder") != b"little":
            _refuse("its byte order is not little-endian")
        machine = _Machine(len(data))
        tree = machine.run(io.BytesIO(entry("data.pkl")))
        for key, storage in machine.storages.items():
            _fill(storage, entry(f"data/{key}"), key)
    return tree


def _read_legacy(data: bytes) -> Any:
    file = io.BytesIO(data)
    if not data.startswith(b"\x80") or _Machine(0).run(file) != _MAGIC:
        _refuse("it begins neither as the legacy nor as the zip container")
    if _Machine(0).run(file) != _LEGACY_VERSION:
        _refuse(f"its version is not {_LEGACY_VERSION}")
    if _Machine(0).run(file).get("little_endian") is not True:
        _refuse("its byte order is not little-endian")
    machine = _Machine(len(data))
    tree = machine.run(file)
    keys = _Machine(0).run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        _refuse("no list of storages follows")
    if len(keys) != len(machine.storages) or set(keys) != machine.storages.keys():
        _refuse("the storages that follow are not those that tensors refer to")
    for key in keys:
        storage = machine.storages[key]
        if int.from_bytes(file.read(8), "little", signed=True) != storage.size:
            _refuse(f"storage {key!r:.90} is not of the size that its tensors expect")
        _fill(storage, file.read(storage.nbytes), key)
    if rest := len(data) - file.tell():
        _refuse(f"{rest:,} bytes follow the last storage")
    return tree


def _fill(storage: np.ndarray, content: bytes, key: str) -> None:
    if len(content) != storage.nbytes:
        _refuse(
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
            _refuse("a function, a type or bytes as a value")


# --- Reading a pickle -------------------------------------------------------------


class _Machine:
    """Runs a pickle's opcodes, of which it knows what a file of weights needs.

    Tensors are views of `storages`, whose numbers are filled in afterwards: in the
    legacy container they come after the pickle.
    """

    def __init__(self, max_bytes: int):
        self.storages: dict[str, np.ndarray] = {}
        self._free_bytes = max_bytes
        self._free_items = MAX_OPCODES
        self._globals: dict[str, Any] = {
            "collections OrderedDict": _ordered_dict,
            "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
            "torch._utils _rebuild_parameter": lambda tensor, grad, hooks: tensor,
            **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
            **_BESIDE_TENSORS,
        }

    def run(self, file: io.BytesIO) -> Any:
        """The object that the pickle at the file's position makes."""
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPCODES:
                _refuse(f"a pickle of more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                break
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _LITERALS:
                self._stack.append(_literal(opcode.name, argument))
            elif opcode.name in _OPERATIONS:
                _OPERATIONS[opcode.name](self, argument)
            else:
                _refuse(f"opcode {opcode.name} in a pickle")
        (result,) = self._stack
        return result

    def _mark(self, _):
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self):
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _tuple(self, _):
        items = self._pop_mark()  # first: it changes the stack
        self._stack.append(tuple(items))

    def _tuple_of(self, count):
        if len(self._stack) < count:
            _refuse("a pickle whose stack runs empty")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _append(self, items):
        target = self._stack[-1]
        if not isinstance(target, list):
            _refuse("a pickle that appends to what is no list")
        target.extend(items)

    def _set_items(self, items):
        target = self._stack[-1]
        if not isinstance(target, dict):
            _refuse("a pickle that sets an item of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others may take forever to hash, or have the same hash again and again.
            if not isinstance(key, str) and not (_is_size(key) and key < 1 << 32):
                _refuse(f"a key of type {type(key).__name__}")
            target[key] = value

    def _global(self, name):
        if name not in self._globals:
            _refuse(f"it refers to {name.replace(' ', '.')!r:.90}, which is not run")
        self._stack.append(self._globals[name])

    def _stack_global(self, _):
        names = self._pop(2)
        if not all(isinstance(name, str) for name in names):
            _refuse("a pickle that refers to what is no name")
        self._global(" ".join(names))

    def _reduce(self, _):
        function, arguments = self._pop(2)
        if not callable(function) or not isinstance(arguments, tuple):
            _refuse("a pickle that calls what is no function")
        if len(arguments) > 7:
            _refuse("a pickle that calls with too many arguments")
        # Long ones can be named again and again.
        items = [a for a in arguments if isinstance(a, dict | list | tuple)]
        self._free_items -= sum(map(len, items))
        if self._free_items < 0:
            _refuse(f"a pickle that calls with more than {MAX_OPCODES:,} items")
        self._stack.append(function(*arguments))

    def _build(self, _):
        # A module's state_dict carries `_metadata`, which nothing here depends on; a
        # NumPy type says in which order its bytes are.
        target, state = self._pop(2)
        if isinstance(target, np.dtype) and isinstance(state, tuple):
            if state[1:2] not in (("<",), ("|",)):
                _refuse("a NumPy number that is not little-endian")
        elif not isinstance(target, dict):
            _refuse("a pickle that sets the state of an object")
        self._stack.append(target)

    def _persistent(self, _):
        """A storage, by ('storage', type, key, device, size[, None])."""
        identity = self._stack.pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            _refuse("a persistent id that is no storage")
        kind, dtype, key, _, size, *view = identity
        if kind != "storage" or not isinstance(key, str) or any(view):
            _refuse("a persistent id that is no storage")
        if not isinstance(dtype, np.dtype) or not _is_size(size):
            _refuse(f"storage {key!r:.90} has no type or size")
        if key not in self.storages:
            self._free_bytes -= size * dtype.itemsize
            if self._free_bytes < 0:
                _refuse("its storages declare more bytes than the file has")
            self.storages[key] = np.zeros(size, dtype)
        storage = self.storages[key]
        if (storage.size, storage.dtype) != (size, dtype):
            _refuse(f"storage {key!r:.90} has two types or sizes")
        self._stack.append(storage)

    def _put(self, index):
        self._memo[index] = self._stack[-1]

    def _get(self, index):
        self._stack.append(self._memo[index])

    def _pop(self, count):
        self._tuple_of(count)
        return self._stack.pop()


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES"),
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": lambda machine, _: machine._append(machine._pop(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
}


def _literal(opcode: str, value: Any) -> Any:
    if isinstance(value, str | bytes) and len(value) > MAX_LENGTH:
        _refuse(f"a string of {len(value):,} characters")
    if isinstance(value, str):
        # What Python 2 called a string; `pickletools` takes its bytes for Latin-1.
        return value.encode("latin-1").decode() if "BINSTRING" in opcode else value
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        _refuse(f"an integer of {value.bit_length():,} bits")
    return value


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
    """Makes a dict of a list of pairs, as Python 2 pickles an OrderedDict."""
    if not all(len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        _refuse("an OrderedDict of what is no pair")
    return dict(pairs)


def _rebuild_tensor(
    storage, offset, shape, strides, requires_grad, hooks, metadata=None
) -> np.ndarray:
    """A view of a storage; strides count elements."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        _refuse("a tensor without a storage")
    if metadata:  # such as that it is seen negated
        _refuse("a tensor with metadata")
    if not (
        isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= MAX_NDIM
        and all(map(_is_size, (offset, *shape, *strides)))
    ):
        _refuse("a tensor whose shape, strides or offset are no sizes")
    spans = zip(shape, strides, strict=True)
    last = offset + sum((size - 1) * stride for size, stride in spans)
    count = math.prod(shape)
    if count > storage.size or (count and last >= storage.size):
        _refuse("a tensor larger than its storage, or reaching beyond it")
    if not count:
        return np.zeros(shape, storage.dtype)
    strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)


def _counter(counts: Any) -> dict[Any, Any]:
    """Makes a Counter, as of a scheduler's milestones, the dict that it is."""
    if not isinstance(counts, dict):
        _refuse("a Counter of what is no dict")
    return counts


def _device(kind: Any, index: Any = None) -> str:
    """Makes a `torch.device` its name, like `cuda:0`."""
    if not isinstance(kind, str) or not re.fullmatch("[a-z]{1,20}", kind):
        _refuse("a device of another kind")
    if index is not None and not (_is_size(index) and index < 1 << 32):
        _refuse("a device of another kind")
    return kind if index is None else f"{kind}:{index}"


def _size(sizes: Any) -> tuple[int, ...]:
    """Makes a `torch.Size` a tuple."""
    sound = isinstance(sizes, tuple) and len(sizes) <= MAX_NDIM
    if not sound or not all(map(_is_size, sizes)):
        _refuse("a torch.Size of no sizes")
    return sizes


_NUMBERS = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def _numpy_dtype(code: Any, *_: Any) -> np.dtype:
    """Makes the type of a NumPy scalar."""
    if code not in _NUMBERS:
        _refuse("a NumPy type that is no number's")
    return np.dtype(f"<{code}")


def _numpy_scalar(dtype: Any, content: Any) -> int | float:
    """Makes a NumPy scalar a number."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        _refuse("a NumPy number without type or bytes")
    if len(content) != dtype.itemsize:
        _refuse(f"a NumPy number of {len(content)} bytes, not {dtype.itemsize}")
    return np.frombuffer(content, dtype)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    """Makes bytes of a string, as which pickles of protocol 2 hold them."""
    if not isinstance(text, str) or encoding != "latin1":
        _refuse("bytes in another encoding")
    return text.encode("latin1")


# What training loops store beside tensors; no other name is known.
_BESIDE_TENSORS: dict[str, Callable[..., Any]] = {
    "collections Counter": _counter,
    "torch device": _device,
    "torch Size": _size,
    "numpy dtype": _numpy_dtype,
    "numpy._core.multiarray scalar": _numpy_scalar,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "_codecs encode": _encode,
}


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _refuse(reason: str) -> NoReturn:
    raise InputError(reason)


# --- Writing one ------------------------------------------------------------------


def _opcodes(value: Any, storages: list[np.ndarray]) -> bytes:
    """The opcodes that push `value`; its arrays are appended to `storages`."""
    if isinstance(value, dict):
        items = (_opcodes(item, storages) for pair in value.items() for item in pair)
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_opcodes(item, storages) for item in value) + b"e"
    if isinstance(value, np.ndarray):
        return _tensor_opcodes(value, storages)
    if not isinstance(value, str | int | float | None):
        raise TypeError(f"a file of weights has no place for {type(value).__name__}")
    return _plain(value)


def _tensor_opcodes(array, storages):
    array = np.ascontiguousarray(array).reshape(array.shape)
    (storage,) = (name for name, dtype in _STORAGES.items() if dtype == array.dtype)
    key = str(len(storages))
    storages.append(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + _plain("storage")
        + f"ctorch\n{storage}\n".encode()
        + _plain(key, "cpu", array.size)
        + b"tQ"
        + _plain(0, array.shape, strides, False)
        + b"ccollections\nOrderedDict\n)RtR"
    )


def _plain(*values):
    """The opcodes that push plain values, one after the other."""
    return b"".join(pickle.dumps(value, protocol=2)[2:-1] for value in values)
