"""The nine shifted views that every 3x3 operator with padding 1 reads."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp


def pad(x: jax.Array) -> jax.Array:
    """Pads (..., H, W, B) to (..., H + 2, W + 2, B), with zeros around the image."""
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 3), (1, 1), (1, 1), (0, 0)))


def windows(padded: jax.Array, stride: int = 1) -> Iterator[jax.Array]:
    """Views (..., ceil(H / stride), ceil(W / stride), B), row by row of the kernel."""
    height, width = (size - 2 for size in padded.shape[-3:-1])
    for i in range(3):
        for j in range(3):
            yield padded[..., i : i + height : stride, j : j + width : stride, :]
