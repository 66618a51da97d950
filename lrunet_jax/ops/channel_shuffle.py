"""The permutation that lets groups of channels exchange what they know."""

import jax
import jax.numpy as jnp


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """One channel of each group after the other; ShuffleNet, arXiv 1707.01083.

    Args:
      x: (C, H, W, B).
      groups: a divisor of C.
    """
    split = x.reshape(groups, -1, *x.shape[1:])
    return jnp.swapaxes(split, 0, 1).reshape(x.shape)
