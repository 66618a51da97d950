"""A trace of some steps, for the viewers of `jax.profiler`."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from typing import TypeVar

import jax
from etils import epath

from lrunet_jax.errors import TroubleError, in_one_line
from lrunet_jax.train import processes

T = TypeVar("T")


def profiled(calls: Iterator[T], directory: epath.Path) -> Iterator[T]:
    """Passes on what an epoch's calls yield, and traces the second, of five steps.

    The first call, of one step, waits for memory and for other processes. The first
    process traces, on its machine, and then copies the trace.

    Args:
      calls: see `EpochLoop.run`.
      directory: for the trace, made if it is missing, perhaps on remote storage.

    Raises:
      TroubleError: if it does not take the trace.
    """
    yield from itertools.islice(calls, 1)
    with tempfile.TemporaryDirectory() as local:
        first = processes.is_first()
        trace = jax.profiler.trace(local) if first else contextlib.nullcontext()
        with trace:
            second = list(itertools.islice(calls, 1))
        if second:
            processes.each(lambda: _copy(epath.Path(local), directory))
    place = directory if second else "none, as the epoch was one call"
    print(f"profile of the second call: {place}", flush=True)
    yield from second
    yield from calls


def _copy(source: epath.Path, target: epath.Path) -> None:
    """Copies the files of a directory, and those within its directories."""
    for path in source.iterdir():
        if path.is_dir():
            _copy(path, target / path.name)
            continue
        try:
            target.mkdir(parents=True, exist_ok=True)
            (target / path.name).write_bytes(path.read_bytes())
        except Exception as error:  # remote storage has errors of its own
            reason = in_one_line(error)
            raise TroubleError(f"profile {target} can't be written: {reason}") from None
