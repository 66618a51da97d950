"""The pickles within PyTorch's files, read and written with NumPy alone.

A pickle is a program, so it is not given to `pickle`, but to a small interpreter: it
knows tensors, numbers, strings and plain containers, and a few types that training
loops store beside them, and refuses anything else without running it.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from lrunet_jax.errors import InputError

# More than files of weights need, and little enough for any content to be harmless.
MAX_OPCODES = 1_000_000  # of a pickle; some 40 a tensor
MAX_LENGTH = 1000  # of a string
MAX_BITS = 80  # of an integer; the legacy container's first has them
MAX_NDIM = 32

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


# --- Reading ----------------------------------------------------------------------


class Interpreter:
    """Runs a pickle's opcodes, of which it knows what a file of weights needs.

    Attributes:
      storages: the tensors' memory, by key. Tensors are views of it, and its numbers
        are filled in afterwards: in the legacy container they come after the pickle.

    Args:
      max_bytes: of all storages together.
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
        """The object that the pickle at the file's position makes.

        Raises:
          InputError: for what a file of weights has no need of; others for damage.
        """
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MAX_OPCODES:
                raise InputError(f"a pickle of more than {MAX_OPCODES:,} opcodes")
            if opcode.name == "STOP":
                break
            if opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _LITERALS:
                self._stack.append(_literal(opcode.name, argument))
            elif opcode.name in _OPERATIONS:
                _OPERATIONS[opcode.name](self, argument)
            else:
                raise InputError(f"opcode {opcode.name} in a pickle")
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
            raise InputError("a pickle whose stack runs empty")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _append(self, items):
        target = self._stack[-1]
        if not isinstance(target, list):
            raise InputError("a pickle that appends to what is no list")
        target.extend(items)

    def _set_items(self, items):
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise InputError("a pickle that sets an item of what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others may take forever to hash, or have the same hash again and again.
            if not isinstance(key, str) and not (_is_size(key) and key < 1 << 32):
                raise InputError(f"a key of type {type(key).__name__}")
            target[key] = value

    def _global(self, name):
        if name not in self._globals:
            raise InputError(
                f"it refers to {name.replace(' ', '.')!r:.90}, which is not run"
            )
        self._stack.append(self._globals[name])

    def _stack_global(self, _):
        names = self._pop(2)
        if not all(isinstance(name, str) for name in names):
            raise InputError("a pickle that refers to what is no name")
        self._global(" ".join(names))

    def _reduce(self, _):
        function, arguments = self._pop(2)
        if not callable(function) or not isinstance(arguments, tuple):
            raise InputError("a pickle that calls what is no function")
        if len(arguments) > 7:
            raise InputError("a pickle that calls with too many arguments")
        # Long ones can be named again and again.
        items = [a for a in arguments if isinstance(a, dict | list | tuple)]
        self._free_items -= sum(map(len, items))
        if self._free_items < 0:
            raise InputError(
                f"a pickle that calls with more than {MAX_OPCODES:,} items"
            )
        self._stack.append(function(*arguments))

    def _build(self, _):
        # A module's state_dict carries `_metadata`, which nothing here depends on; a
        # NumPy type says in which order its bytes are.
        target, state = self._pop(2)
        if isinstance(target, np.dtype) and isinstance(state, tuple):
            if state[1:2] not in (("<",), ("|",)):
                raise InputError("a NumPy number that is not little-endian")
        elif not isinstance(target, dict):
            raise InputError("a pickle that sets the state of an object")
        self._stack.append(target)

    def _persistent(self, _):
        """A storage, by ('storage', type, key, device, size[, None])."""
        identity = self._stack.pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise InputError("a persistent id that is no storage")
        kind, dtype, key, _, size, *view = identity
        if kind != "storage" or not isinstance(key, str) or any(view):
            raise InputError("a persistent id that is no storage")
        if not isinstance(dtype, np.dtype) or not _is_size(size):
            raise InputError(f"storage {key!r:.90} has no type or size")
        if key not in self.storages:
            self._free_bytes -= size * dtype.itemsize
            if self._free_bytes < 0:
                raise InputError("its storages declare more bytes than the file has")
            self.storages[key] = np.zeros(size, dtype)
        storage = self.storages[key]
        if (storage.size, storage.dtype) != (size, dtype):
            raise InputError(f"storage {key!r:.90} has two types or sizes")
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
_OPERATIONS: dict[str, Callable[[Interpreter, Any], None]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "MARK": Interpreter._mark,
    "TUPLE": Interpreter._tuple,
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "APPEND": lambda machine, _: machine._append(machine._pop(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "GLOBAL": Interpreter._global,
    "STACK_GLOBAL": Interpreter._stack_global,
    "REDUCE": Interpreter._reduce,
    "BUILD": Interpreter._build,
    "BINPERSID": Interpreter._persistent,
    "BINPUT": Interpreter._put,
    "LONG_BINPUT": Interpreter._put,
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    "BINGET": Interpreter._get,
    "LONG_BINGET": Interpreter._get,
}


def _literal(opcode: str, value: Any) -> Any:
    if isinstance(value, str | bytes) and len(value) > MAX_LENGTH:
        raise InputError(f"a string of {len(value):,} characters")
    if isinstance(value, str):
        # What Python 2 called a string; `pickletools` takes its bytes for Latin-1.
        return value.encode("latin-1").decode() if "BINSTRING" in opcode else value
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise InputError(f"an integer of {value.bit_length():,} bits")
    return value


def _ordered_dict(pairs: Any = ()) -> dict[str, Any]:
    """Makes a dict of a list of pairs, as Python 2 pickles an OrderedDict."""
    if not all(len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        raise InputError("an OrderedDict of what is no pair")
    return dict(pairs)


def _rebuild_tensor(
    storage, offset, shape, strides, requires_grad, hooks, metadata=None
) -> np.ndarray:
    """A view of a storage; strides count elements."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise InputError("a tensor without a storage")
    if metadata:  # such as that it is seen negated
        raise InputError("a tensor with metadata")
    if not (
        isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= MAX_NDIM
        and all(map(_is_size, (offset, *shape, *strides)))
    ):
        raise InputError("a tensor whose shape, strides or offset are no sizes")
    spans = zip(shape, strides, strict=True)
    last = offset + sum((size - 1) * stride for size, stride in spans)
    count = math.prod(shape)
    if count > storage.size or (count and last >= storage.size):
        raise InputError("a tensor larger than its storage, or reaching beyond it")
    if not count:
        return np.zeros(shape, storage.dtype)
    strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)


def _counter(counts: Any) -> dict[Any, Any]:
    """Makes a Counter, as of a scheduler's milestones, the dict that it is."""
    if not isinstance(counts, dict):
        raise InputError("a Counter of what is no dict")
    return counts


def _device(kind: Any, index: Any = None) -> str:
    """Makes a `torch.device` its name, like `cuda:0`."""
    if not isinstance(kind, str) or not re.fullmatch("[a-z]{1,20}", kind):
        raise InputError("a device of another kind")
    if index is not None and not (_is_size(index) and index < 1 << 32):
        raise InputError("a device of another kind")
    return kind if index is None else f"{kind}:{index}"


def _size(sizes: Any) -> tuple[int, ...]:
    """Makes a `torch.Size` a tuple."""
    sound = isinstance(sizes, tuple) and len(sizes) <= MAX_NDIM
    if not sound or not all(map(_is_size, sizes)):
        raise InputError("a torch.Size of no sizes")
    return sizes


_NUMBERS = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def _numpy_dtype(code: Any, *_: Any) -> np.dtype:
    """Makes the type of a NumPy scalar."""
    if code not in _NUMBERS:
        raise InputError("a NumPy type that is no number's")
    return np.dtype(f"<{code}")


def _numpy_scalar(dtype: Any, content: Any) -> int | float:
    """Makes a NumPy scalar a number."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise InputError("a NumPy number without type or bytes")
    if len(content) != dtype.itemsize:
        raise InputError(
            f"a NumPy number of {len(content)} bytes, not {dtype.itemsize}"
        )
    return np.frombuffer(content, dtype)[0].item()


def _encode(text: Any, encoding: Any) -> bytes:
    """Makes a number's bytes of a string, as which pickles of protocol 2 hold them."""
    if not isinstance(text, str) or len(text) > 8 or encoding != "latin1":
        raise InputError("bytes in another encoding, or of no number")
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


# --- Writing ----------------------------------------------------------------------


def opcodes(value: Any, storages: list[np.ndarray]) -> bytes:
    """The opcodes that push `value`; its arrays are appended to `storages`.

    Raises:
      TypeError: for what `Interpreter` would not read.
    """
    if isinstance(value, dict):
        items = (opcodes(item, storages) for pair in value.items() for item in pair)
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(opcodes(item, storages) for item in value) + b"e"
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
