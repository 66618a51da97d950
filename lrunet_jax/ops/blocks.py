"""Channel blocks: arrays split along their first axis."""

import jax


def split(x: jax.Array, count: int) -> jax.Array:
    """(C, ...) -> (count, C / count, ...)."""
    return x.reshape(count, x.shape[0] // count, *x.shape[1:])


def merge(x: jax.Array) -> jax.Array:
    """(count, C / count, ...) -> (C, ...)."""
    return x.reshape(-1, *x.shape[2:])
