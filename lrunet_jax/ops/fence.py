"""Functions that XLA compiles on their own."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def fenced(
    function: Callable[..., Any], static_argnums: Sequence[int] = ()
) -> Callable[..., Any]:
    """`function`, into which and out of which XLA for CPU fuses nothing.

    Its arguments and results are arrays in memory. XLA for CPU duplicates what it
    fuses: the sum of a residual block's output went into each of its readers, and with
    it the sums of all blocks before, and a product's flattened pixels made a
    convolution divide in its inner loop to find its place. (It ignores
    `lax.optimization_barrier`.) What nobody reads is still computed where another
    result of the same call is read.

    Args:
      function: of arrays; is not differentiated, so its caller has a `custom_vjp`.
      static_argnums: of its hashable arguments.
    """

    @functools.partial(jax.jit, static_argnums=static_argnums)
    def body(*args):
        with set_xla_metadata(inlineable=None):  # what it calls is its own
            return function(*args)

    @functools.wraps(function)
    def call(*args):
        with set_xla_metadata(inlineable="false"):
            return body(*args)

    return call
