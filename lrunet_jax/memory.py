"""The memory that a program takes, and that a device has."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from lrunet_jax.errors import InputError

_CGROUPS = "/sys/fs/cgroup"


def require_memory(
    what: str, taken: int, smaller: str = "batch_size, model or crop"
) -> None:
    """Raises an InputError if `what` takes more bytes than each device has.

    Args:
      what: that takes them.
      taken: the bytes.
      smaller: what would take less.
    """
    if (limit := device_memory()) is not None and taken > limit:
        raise InputError(
            f"{what} takes {_in_gb(taken)} GB of memory, and a device has "
            f"{_in_gb(limit)}; a smaller {smaller} takes less"
        )


def _in_gb(count):
    return f"{count / 1e9:,.1f}" if count >= 1e8 else f"{count / 1e9:.3g}"


def memory_taken(program: Any) -> int:
    """The bytes that a compiled program takes on each device, see `memory_by_kind`."""
    return sum(memory_by_kind(program).values())


def memory_by_kind(program: Any) -> dict[str, int]:
    """The bytes that a compiled program takes on each device, by what they are for.

    Args:
      program: what `compile` of a lowered function returned.

    Returns:
      `arguments`, `outputs` that are no argument's memory, `temporary`, and `code`;
      nothing if the backend does not know.
    """
    if (figures := program.memory_analysis()) is None:
        return {}
    return {
        "arguments": figures.argument_size_in_bytes,
        "outputs": figures.output_size_in_bytes - figures.alias_size_in_bytes,
        "temporary": figures.temp_size_in_bytes,
        "code": figures.generated_code_size_in_bytes,
    }


def size(tree: Any) -> int:
    """The bytes of the arrays of a pytree."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def device_memory() -> int | None:
    """The bytes that each device has; None if it does not say.

    CPU devices share the machine's memory, or what its cgroup leaves of it.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return min(_machine_limits()) // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def _machine_limits() -> Iterator[int]:
    """The machine's memory, and the limit of each cgroup that the process is in."""
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):  # there are none but on Linux
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            # Version 2, with one tree for all kinds, and version 1.
            files = {"": "memory.max", "memory": "memory/memory.limit_in_bytes"}
            if kinds in files:
                file = pathlib.Path(_CGROUPS, files[kinds])
                group = file.parent / path.lstrip("/")
                while group.is_relative_to(file.parent):
                    with contextlib.suppress(OSError, ValueError):  # "max" is none
                        yield int((group / file.name).read_text())
                    group = group.parent
