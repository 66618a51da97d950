"""ReLU and ReLU6 that keep NaN.

XLA for CPU drops it where `lax.max` or `lax.min` is fused into a reduction: of NaN,
the mean of `jax.nn.relu` is 0 there, and a network with a NaN among its weights gives
finite logits. A comparison and a selection keep it, and take the same time.
"""

import jax
import jax.numpy as jnp


@jax.jit  # traced once for all layers of a shape
def relu(x: jax.Array) -> jax.Array:
    """The positive part of x, in its shape and dtype, and NaN where x is NaN.

    The gradient at 0 is 0, as that of `jax.nn.relu`.
    """
    return jnp.where(x <= 0, 0, x)


@jax.jit
def relu6(x: jax.Array) -> jax.Array:
    """The positive part of x up to 6, in its shape and dtype, and NaN where x is NaN.

    The gradient at 0 and at 6 is 0, as that of `jax.nn.relu6`.
    """
    return jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x))
