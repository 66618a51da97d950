"""Pixels of images, each from a place of its own: a gather."""

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.lowerings import choose


def take_pixels(
    images: jax.Array,
    y: jax.Array,
    x: jax.Array,
    inside: jax.Array,
    *,
    lowering: str | None = None,
) -> jax.Array:
    """The pixels images[b, y, x], and zero outside of the images.

    Args:
      images: (B, H, W, channels) uint8.
      y: (B, h, w) integers, the row of each pixel.
      x: (B, h, w) integers, its column.
      inside: (B, h, w) bool, whether row and column are in the image.
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.

    Returns:
      (B, h, w, channels) uint8.
    """
    return choose(_LOWERINGS, lowering)(images, y, x, inside)


def _xla(images, y, x, inside):
    batch, height, width, channels = images.shape
    pixels = jnp.where(inside, y * width + x, 0).reshape(batch, -1, 1)
    flat = images.reshape(batch, height * width, channels)
    taken = jnp.take_along_axis(flat, pixels, axis=1, mode="promise_in_bounds")
    return jnp.where(inside[..., None], taken.reshape(*inside.shape, channels), 0)


def _tpu(images, y, x, inside):
    # By a matrix that has a one in each column that is inside. A TPU gathers pixel by
    # pixel, and makes this matrix while it multiplies: 5 % of LruNet's step for N = 1,
    # by its compiler's estimate. bfloat16 holds 0 to 255 exactly. Two channels at
    # least: one alone is not multiplied as a matrix, and takes fifteen times as long.
    batch, height, width, channels = images.shape
    pixels = jnp.where(inside, y * width + x, -1).reshape(batch, 1, -1)
    ones = pixels == jnp.arange(height * width)[:, None]
    planes = jnp.moveaxis(images, 3, 1).reshape(batch, channels, -1)
    planes = jnp.pad(planes, ((0, 0), (0, max(2 - channels, 0)), (0, 0)))
    taken = lax.batch_matmul(planes.astype(jnp.bfloat16), ones.astype(jnp.bfloat16))
    taken = taken[:, :channels].reshape(batch, channels, *inside.shape[1:])
    return jnp.moveaxis(taken, 1, 3).astype(images.dtype)


_LOWERINGS = {"tpu": _tpu, "xla": _xla}
