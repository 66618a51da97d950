"""Dropout of arrays whose last axis is the batch."""

import jax
import jax.numpy as jnp

from lrunet_jax.ops.batch_axis import own_share, resolve_axis, whole_count


def dropout(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Sets values to 0 at random, and divides the others by 1 - rate.

    Each device draws for the whole batch, so that the number of devices makes no
    difference.

    Args:
      x: (..., B).
      key: PRNG key.
      rate: the probability of a 0, in [0, 1).
    """
    *others, size = x.shape
    shape = (*others, whole_count(size, resolve_axis()))
    kept = jax.random.bernoulli(key, 1 - rate, shape)
    kept = own_share(kept, dimension=len(others))
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))
