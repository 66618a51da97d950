"""The devices that share a batch, and what they tell each other of it.

Within `jax.shard_map` each device runs the operators on its own images. Those whose
result depends on the whole batch learn by a context what the devices hold:

    with ops.batch_axis("data", shares=8):
        logits, updates = model.apply(variables, images_of_this_device, train=True, ...)

It takes effect while a function is traced, as that of `ops.lowering` does. Without it
the batch is one device's, and nothing is sent.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree


class BatchAxis(NamedTuple):
    """The devices along an axis of the mesh, and how they hold a batch.

    Attributes:
      name: of the axis, over which `jax.shard_map` maps.
      shares: the equal parts that the batch is in, one on each device; 1 where each
        device has the whole batch. What they find is averaged then, so that they stay
        equal where a device does not add in the same order twice.
    """

    name: str
    shares: int


# A part of the key of every cache of JAX's, as the lowering is.
_context = jax.make_user_context(None)

T = TypeVar("T")
Means = TypeVar("Means")
Sums = TypeVar("Sums")


@contextlib.contextmanager
def batch_axis(name: str, shares: int) -> Iterator[None]:
    """A context in which a batch is shared by devices, see `BatchAxis`."""
    with _context(BatchAxis(name, shares)):
        yield


def resolve_axis() -> BatchAxis | None:
    """The axis of the context, None without one.

    To be called by an operator, not by the rules of its `custom_vjp`: those may be
    traced after the context has been left.
    """
    return _context.value


def own_share(whole: T, *, dimension: int = 0) -> T:
    """The part of arrays along the whole batch that this device has.

    Args:
      whole: a pytree of arrays.
      dimension: of the arrays, the batch's.
    """
    axis = resolve_axis()
    if axis is None or axis.shares == 1:
        return whole

    def share(array):
        size = array.shape[dimension] // axis.shares
        start = lax.axis_index(axis.name) * size
        return lax.dynamic_slice_in_dim(array, start, size, dimension)

    return jax.tree.map(share, whole)


def over_batch(means: Means, sums: Sums) -> tuple[Means, Sums]:
    """Means and sums over the whole batch, from those over each device's images.

    They are added up in one reduction. The sums are scalars, and added up in the widest
    of their types: those of integers are exact up to 2^24.
    """
    if (axis := resolve_axis()) is None:
        return means, sums
    scalars, separate = ravel_pytree(sums)
    if axis.shares == 1:  # each device has all of them; whole numbers stay so
        first = lax.axis_index(axis.name) == 0
        scalars = jnp.where(first, scalars, 0)
    # All at once, or compilers make one of those that are ready and one of the rest.
    ready = lax.optimization_barrier((means, scalars))
    totals, scalars = lax.psum(ready, axis.name)
    devices = lax.axis_size(axis.name)
    means = jax.tree.map(lambda total: total / devices, totals)
    return means, separate(scalars)


def sum_over_batch(sums: T, count: int, axis: BatchAxis | None) -> tuple[T, int]:
    """Adds up the sums that devices have over `count` values each, in one reduction.

    Returns:
      The totals and their count; where each device has the whole batch, both are as
      many times larger as there are devices.
    """
    if axis is None:
        return sums, count
    return lax.psum(sums, axis.name), count * lax.axis_size(axis.name)


def mean_over_batch(sums: T, count: int, axis: BatchAxis | None) -> T:
    """Means over the whole batch, from sums over `count` values on each device.

    One reduction. It is divided behind it, where compilers fuse that into what uses the
    means; before it, it would be a kernel of its own.
    """
    totals, count = sum_over_batch(sums, count, axis)
    return jax.tree.map(lambda total: total / count, totals)


def whole_count(count: int, axis: BatchAxis | None) -> int:
    """The count for the whole batch that is `count` for a device's images."""
    return count if axis is None else count * axis.shares
