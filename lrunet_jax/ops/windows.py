"""The nine shifted views that every 3x3 operator with padding 1 reads."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp


def windows(x: jax.Array, stride: int = 1) -> Iterator[jax.Array]:
    """Views (..., ceil(H / stride), ceil(W / stride), B) of x (..., H, W, B).

    Row by row of the kernel. x is zero outside.
    """
    height, width = x.shape[-3:-1]
    padded = jnp.pad(x, (*((0, 0),) * (x.ndim - 3), (1, 1), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(3):
            yield padded[..., i : i + height : stride, j : j + width : stride, :]
