"""The identity, where XLA for CPU must have an array in memory."""

from typing import TypeVar

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from lrunet_jax.ops.lowerings import resolve

T = TypeVar("T")


def materialise(x: T, *, lowering: str | None = None) -> T:
    """Returns x, and makes XLA for CPU store it, and its gradient, in memory.

    Left to itself, XLA for CPU fuses an elementwise expression into every consumer and
    computes it there anew: a residual sum together with the sums of all blocks before
    it, the input of a convolution nine times. It ignores `lax.optimization_barrier`; a
    call that is not inlined stops it, and costs nothing.

    Args:
      x: an array of any shape, or a pytree of them; no consumer of one leaf starts
        before all leaves are computed.
      lowering: `auto` or one of `LOWERINGS`, by default that of `ops.lowering`; only
        `cpu` does anything.
    """
    return in_memory(x) if resolve(lowering) == "cpu" else x


@jax.custom_vjp
def in_memory(x: T) -> T:
    """Does what `materialise` does in the `cpu` lowering."""
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
