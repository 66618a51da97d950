"""Trouble with a disk or memory, told from damage to what is stored."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from etils import epath

from lrunet_jax.errors import InputError, TroubleError, in_one_line

SECONDS_BETWEEN_TRIALS = (0.5, 1.0, 2.0)

T = TypeVar("T")

# Errors of the system that speak of a path, and not of a disk that can't read it.
OF_PATHS = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


class DamagedError(ValueError):
    """Something stored can be read, and is not what was written."""


def read_carefully(directory: epath.Path, read: Callable[[], T]) -> T:
    """Calls `read`, which reads what is stored in `directory`.

    Where it fails, memory or the disk may be in trouble: then it is tried three times
    more. Where each file can be read by itself, it is tried once more, and if it fails
    again something is damaged. No message of a library is interpreted, as each has its
    own.

    Raises:
      DamagedError: for damage.
      TroubleError: for trouble that stays.
      InputError: what `read` itself raises for bad input.
    """
    readable = False
    with warnings.catch_warnings():
        # Where Orbax stops early, it leaves coroutines that nobody waits for.
        warnings.filterwarnings("ignore", "coroutine .* never awaited", RuntimeWarning)
        for pause in (0.0, *SECONDS_BETWEEN_TRIALS):
            time.sleep(pause)
            try:
                return read()
            except InputError:
                raise
            except Exception as error:  # Orbax has many names for damage
                reason = in_one_line(error)
                in_trouble = any(map(_is_trouble, _causes(error)))
            if not in_trouble:
                trouble = _trouble_with_files(directory)
                if trouble is None and readable:
                    raise DamagedError(reason)
                readable = trouble is None
                reason = in_one_line(trouble) if trouble else reason
    raise TroubleError(
        f"{directory} can't be read now: {reason}; nothing was changed, the same "
        "command tries again"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _causes(one)
        error = error.__cause__ or error.__context__


def _is_trouble(error: BaseException) -> bool:
    if isinstance(error, OSError):
        # Without a number it comes from a library that found no form it knows.
        numbered = error.errno is not None and not isinstance(error, OF_PATHS)
        return numbered or isinstance(error, TimeoutError | ConnectionError)
    return isinstance(error, MemoryError | jax.errors.JaxRuntimeError)


def _trouble_with_files(directory: epath.Path) -> Exception | None:
    """The error of reading every file, if any; all are open at once, as in Orbax."""
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(p.open("rb")) for p in _files(directory)]
            for file in files:
                while file.read(1 << 20):
                    pass
    except Exception as error:  # a remote file system has errors of its own
        return error
    return None


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
