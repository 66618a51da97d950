"""The processes of a run: what they decide together, and what the first one does.

A TPU pod slice or a cluster starts one process a host. All of them run the same
programs at the same time, so that whatever is decided by a clock, a signal or a disk is
decided once, for all. A process by itself is the first, and talks to nobody.
"""

import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from lrunet_jax.errors import InputError, TroubleError, in_one_line, require

T = TypeVar("T")

# How many processes of SLURM's step, Open MPI and MPICH this one belongs to.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def join(
    coordinator: str, num_processes: int, process_id: int, heartbeat_timeout: int
) -> None:
    """Joins the other processes of a run, before JAX is used.

    Args:
      coordinator: HOST:PORT of the first process, or `auto` to learn everything from
        the TPU pod or from SLURM, see `jax.distributed.initialize`; empty for one
        process by itself.
      num_processes: of the run; 0 unless an address is given.
      process_id: of this process, from 0; -1 unless an address is given.
      heartbeat_timeout: the seconds after which a silent process is taken for dead, and
        the others end; so long they also wait for each other here.

    Raises:
      InputError: for a bad value, and if the others can't be reached.
    """
    name = "heartbeat_timeout_seconds"
    require(heartbeat_timeout >= 1, name, heartbeat_timeout, "at least 1")
    if coordinator in ("", "auto"):
        allowed = "left out, unless --coordinator is HOST:PORT"
        require(num_processes == 0, "num_processes", num_processes, allowed)
        require(process_id == -1, "process_id", process_id, allowed)
        given = {}
    else:
        given = _address(coordinator, num_processes, process_id)
    if not coordinator:
        return
    # JAX would take SIGTERM for itself, see `train.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=heartbeat_timeout,
            initialization_timeout=heartbeat_timeout,
            **given,
        )
    except Exception as error:  # no cluster, no network, a port that is taken
        raise InputError(
            f"coordinator is {coordinator!r}, by which this process can't join the "
            f"others: {in_one_line(error)}"
        ) from None


def _address(coordinator: str, num_processes: int, process_id: int) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize` for an address."""
    found = re.fullmatch(r"(.+):([0-9]{1,5})", coordinator)
    is_address = found is not None and 0 < int(found[2]) < 1 << 16
    allowed = "'auto', or HOST:PORT of the first process"
    require(is_address, "coordinator", coordinator, allowed)
    require(num_processes >= 1, "num_processes", num_processes, "at least 1")
    allowed = f"in [0, {num_processes}), with num_processes {num_processes}"
    require(0 <= process_id < num_processes, "process_id", process_id, allowed)
    given = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }
    if re.match(r"localhost:|127\.|\[::1\]", coordinator):
        given["coordinator_bind_address"] = coordinator  # nobody from outside
    return given


def is_first() -> bool:
    """Tells whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def each(function: Callable[[], T]) -> T:
    """Calls a function on each process, and returns once it has returned on all.

    Raises:
      Exception: on the first process, what the function has raised on any; of another
        one as the same class, or as a TroubleError. The others then raise SystemExit,
        as the first one speaks, and none of them waits for another any more.
    """
    if jax.process_count() == 1:
        return function()
    value: T | None = None
    failure: Exception | None = None
    try:
        value = function()
    except Exception as error:
        failure = error
    messages: list[Any] = _gather(
        failure and (_kind(failure), f"{failure}", socket.gethostname())
    )
    failed = [process for process, found in enumerate(messages) if found]
    if not failed:
        return cast(T, value)
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    kind, text, host = messages[failed[0]]
    if not is_first():
        sys.exit(2 if kind is InputError else 1)
    raise failure or kind(f"process {failed[0]} on {host}: {text}")


def from_first(function: Callable[[], T]) -> T:
    """Calls a function on the first process, and returns its value on all.

    Args:
      function: whose value can be pickled.

    Raises:
      Exception: what it has raised, as `each` does.
    """
    if jax.process_count() == 1:
        return function()
    value = each(lambda: function() if is_first() else None)
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content))))
    padded = content if is_first() else np.zeros(size, np.uint8)
    return pickle.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def first_then_others(function: Callable[[], T]) -> T:
    """Calls a function on the first process, and then on all others; see `each`."""
    value = each(lambda: function() if is_first() else None)
    return each(lambda: cast(T, value) if is_first() else function())


def largest(value: float) -> float:
    """The largest of all processes' values."""
    return max(_gather(float(value)))


def require_same(values: Mapping[str, object]) -> None:
    """Raises an InputError that names the first value which processes do not share."""
    everywhere = _gather((socket.gethostname(), dict(values)))

    def check():
        _, expected = everywhere[0]
        for process, (host, found) in enumerate(everywhere):
            for name in sorted(expected | found):
                value, first = found.get(name), expected.get(name)
                field = f"{name} of process {process} on {host}"
                require(value == first, field, value, f"{first!r}, as of the first one")

    each(check)


class OnFirst:
    """An object that the first process has; what its methods return, all have.

    Its methods raise on all processes, see `each`. It is a context manager.
    """

    def __init__(self, create: Callable[[], Any]):
        """Creates the object, on the first process."""
        self._object = each(lambda: create() if is_first() else None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method of this name: all processes call it."""
        return lambda *args: from_first(lambda: getattr(self._object, name)(*args))

    def __enter__(self) -> "OnFirst":
        each(lambda: self._object and self._object.__enter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        leave = lambda: self._object and self._object.__exit__(kind, *error)
        if kind is None:
            each(leave)
        else:  # of which the others may not know
            leave()


def require_one_process() -> None:
    """Raises an InputError where several processes were started, or have joined."""
    started = {name: os.environ.get(name) or "1" for name in _TASKS}
    if jax.distributed.is_initialized():
        started["the number of processes"] = str(jax.process_count())
    for name, count in started.items():
        allowed = "1, as only train.py runs in several processes"
        require(count == "1", name, count, allowed)


def exit_process(status: int) -> NoReturn:
    """Ends this process; one of several without a word to the others.

    They may be waiting for it in a step, and it must not wait for them.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _kind(error):
    """The class to raise elsewhere: its own, where it is one that commands report."""
    known = (InputError, TroubleError, ArithmeticError)
    return type(error) if isinstance(error, known) else TroubleError


def _gather(value: T) -> list[T]:
    """The values of all processes, in their order."""
    if jax.process_count() == 1:
        return [value]
    content = pickle.dumps(value)
    sizes = multihost_utils.process_allgather(np.array(len(content)))
    padded = np.frombuffer(content.ljust(int(max(sizes)), b"\0"), np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row.tobytes()) for row in rows]  # which ends where it ends
