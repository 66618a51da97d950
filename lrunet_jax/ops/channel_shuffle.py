"""Permutations that let groups of channels exchange what they know."""

import jax
import jax.numpy as jnp

from lrunet_jax.ops.blocks import merge, split


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """One channel of each group after the other; ShuffleNet, arXiv 1707.01083.

    Args:
      x: (C, H, W, B).
      groups: a divisor of C.
    """
    return merge(jnp.swapaxes(split(x, groups), 0, 1))


def shuffle(x: jax.Array) -> jax.Array:
    """LruNet's: the halves of the channels swapped, then interleaved."""
    return interleave(split(x, 2))


def unshuffle(x: jax.Array) -> jax.Array:
    """The inverse of `shuffle`."""
    return jnp.concatenate([x[1::2], x[0::2]])


def interleave(halves: jax.Array) -> jax.Array:
    """(2, C / 2, ...) to (C, ...): a channel of the second half, one of the first."""
    # Reversed and transposed: a concatenation took 14 % of a training step more.
    return merge(halves[::-1].swapaxes(0, 1))
