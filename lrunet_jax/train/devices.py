"""The devices: what each of them holds, and what it computes."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lrunet_jax import ops

_AXIS = "data"
SAME_ON_ALL, IN_SHARES = PartitionSpec(), PartitionSpec(_AXIS)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices, by default all there are, along one axis."""
    devices = jax.devices() if devices is None else devices
    shape, kinds = (len(devices),), (AxisType.Auto,)
    return jax.make_mesh(shape, (_AXIS,), kinds, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding by which each device has all of an array."""
    return NamedSharding(mesh, SAME_ON_ALL)


def abstract(tree: Any, mesh: Mesh) -> Any:
    """The shapes of a pytree's arrays, as of arrays that each device has all of."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts a pytree's NumPy arrays, which all processes have, on all devices."""
    sharding = replicated(mesh)

    def put(array):
        part = lambda index: np.asarray(array[index])
        return jax.make_array_from_callback(np.shape(array), sharding, part)

    return jax.tree.map(put, tree)


def on_each_device(
    function: Callable[..., Any], mesh: Mesh, out_specs: Any = SAME_ON_ALL
) -> Callable[..., Any]:
    """The function that every device calls with the whole of the arguments.

    Args:
      function: whose operators share a batch within `batch_on`.
      mesh: the devices.
      out_specs: how the results lie on them, as `jax.shard_map` takes it.
    """
    # Checked, each rule's zeros would have to be cast to what differs by device, and
    # gradients would be added up wherever a weight is used, in every iteration.
    return jax.shard_map(
        function, mesh=mesh, in_specs=SAME_ON_ALL, out_specs=out_specs, check_vma=False
    )


def batch_on(mesh: Mesh, batch_size: int) -> contextlib.AbstractContextManager[None]:
    """A context in which the devices share a batch.

    Where they don't divide it, each has the whole. One device shares with none.
    """
    if mesh.size == 1:
        return contextlib.nullcontext()
    shares = mesh.size if batch_size % mesh.size == 0 else 1
    return ops.batch_axis(_AXIS, shares)
