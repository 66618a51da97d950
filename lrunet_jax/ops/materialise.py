"""The identity, where XLA for CPU must have an array in memory."""

from typing import TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from lrunet_jax.ops.lowerings import resolve

T = TypeVar("T")


def materialise(x: T, *, lowering: str | None = None) -> T:
    """An identity whose input, and whose gradient, are computed once.

    XLA for CPU computes an elementwise expression anew in each of its readers: the
    output of a residual block was summed in each, and with it those of all blocks
    before; the nine shifts of a convolution were read from an input computed nine
    times; and a product's reader flattens the pixels, so that what made them divided
    in its inner loop to find its place. It ignores `lax.optimization_barrier`; a
    call that is not inlined costs nothing and stops it.

    Args:
      x: an array of any shape, or a pytree of them. Nothing is computed from one of
        them before all are there.
      lowering: `auto` or one of `LOWERINGS`, by default as the context has it; only
        `cpu` does anything.
    """
    return in_memory(x) if resolve(lowering) == "cpu" else x


@jax.custom_vjp
def in_memory(x: T) -> T:
    """The same, within the `cpu` lowering."""
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


@jax.jit
def _identity(x):
    return x


def _forward(x):
    return in_memory(x), None


def _backward(_, grad):
    return (in_memory(grad),)


in_memory.defvjp(_forward, _backward)
