"""Channel blocks: arrays split along their first axis."""

import jax
from jax import lax


def split(x: jax.Array, count: int) -> jax.Array:
    """Splits the channels: (C, ...) to (count, C / count, ...)."""
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])


def merge(x: jax.Array) -> jax.Array:
    """Undoes `split`: (count, C / count, ...) to (C, ...)."""
    return lax.collapse(x, 0, 2)
