"""Random crop, rotation and flip, as PIL computes them, in one pass over a batch."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrunet_jax.ops import resolve

ANGLES = 1 << 16  # that a rotation is drawn from


class Transforms(NamedTuple):
    """What happens to each image of a batch.

    Attributes:
      top, left: (B,) int32, where the crop begins in the padded image.
      rotation: (B, 4) int32, `fixed_point_rotations` of its angle.
      flip: (B,) bool, left and right exchanged.
    """

    top: jax.Array
    left: jax.Array
    rotation: jax.Array
    flip: jax.Array


def make_augment(
    *,
    size: int,
    padding: int,
    rotation: float,
    flip: bool,
    lowering: str = "auto",
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The recipe's augmentation, as a function of a key and images.

    As the original: crop, then rotate, then flip.

    Args:
      size: height and width of the crop, in pixels.
      padding: zeros around the image before the crop, in pixels; the crop's offset is
        uniform. 0 with a size of the image's own turns cropping off.
      rotation: the largest angle in degrees, drawn uniformly in both directions; 0
        turns it off.
      flip: whether half of the images are flipped.
      lowering: `auto` or one of `ops.LOWERINGS`.

    Returns:
      (key, images (B, H, W, channels) uint8) -> (B, size, size, channels) uint8.
    """
    # Midpoints of equal steps: no angle twice, and none but 0 for a rotation of 0.
    angles = rotation * ((np.arange(ANGLES) + 0.5) * (2 / ANGLES) - 1)
    table = fixed_point_rotations(angles, size)

    @jax.named_scope("augment")
    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        batch, height, width, _ = images.shape
        keys = jax.random.split(key, 4)
        integers = functools.partial(jax.random.randint, shape=(batch,), minval=0)
        transforms = Transforms(
            integers(keys[0], maxval=height + 2 * padding - size + 1),
            integers(keys[1], maxval=width + 2 * padding - size + 1),
            jnp.asarray(table)[integers(keys[2], maxval=ANGLES)],
            integers(keys[3], maxval=2) < int(flip),
        )
        return transform(
            images, transforms, size=size, padding=padding, lowering=lowering
        )

    return augment


def transform(
    images: jax.Array,
    transforms: Transforms,
    *,
    size: int,
    padding: int,
    lowering: str = "auto",
) -> jax.Array:
    """Crops, rotates (nearest neighbour, zero outside) and flips.

    In integer arithmetic: the same pixels on every backend.

    Args:
      images: (B, H, W, channels) uint8.
      transforms: of the B images.
      size: of the crop, in pixels.
      padding: zeros around the image before the crop, in pixels.
      lowering: `auto` or one of `ops.LOWERINGS`.

    Returns:
      (B, size, size, channels) uint8.
    """
    height, width = images.shape[1:3]
    per_image = lambda values: values[:, None, None]
    y = jnp.arange(size)[:, None]
    x = jnp.arange(size)[None, :]
    # Backwards from the output pixel: flip, rotation, crop.
    x = jnp.where(per_image(transforms.flip), size - 1 - x, x)
    x0, y0, cosine, sine = map(per_image, transforms.rotation.T)
    x, y = (x0 + x * cosine + y * sine) >> 16, (y0 - x * sine + y * cosine) >> 16
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    x += per_image(transforms.left) - padding
    y += per_image(transforms.top) - padding
    inside &= (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return _LOWERINGS[resolve(lowering)](images, y, x, inside)


def _gathered(images, y, x, inside):
    batch, height, width, channels = images.shape
    pixels = jnp.where(inside, y * width + x, 0).reshape(batch, -1, 1)
    flat = images.reshape(batch, height * width, channels)
    taken = jnp.take_along_axis(flat, pixels, axis=1, mode="promise_in_bounds")
    return jnp.where(inside[..., None], taken.reshape(*inside.shape, channels), 0)


def _multiplied(images, y, x, inside):
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


_LOWERINGS = {"mapped": _gathered, "xla": _gathered, "dense": _multiplied}


def fixed_point_rotations(angles: np.ndarray, size: int) -> np.ndarray:
    """PIL's coefficients of rotations about the centre of a square image.

    Output pixel (x, y) takes input pixel ((x0 + x cos + y sin) >> 16,
    (y0 - x sin + y cos) >> 16). They come from float64 on the host: float32 moves one
    in twenty of them.

    Args:
      angles: (n,) in degrees, counter-clockwise.
      size: height and width, in pixels.

    Returns:
      (n, 4) int32: x0, y0, cos, sin, in units of 2^-16.
    """
    theta = -np.radians(np.asarray(angles, np.float64))
    cosine, sine = np.round(np.cos(theta), 15), np.round(np.sin(theta), 15)
    centre = size / 2
    x0 = cosine * -centre + sine * -centre + centre
    y0 = -sine * -centre + cosine * -centre + centre
    values = (
        x0 + cosine / 2 + sine / 2,
        y0 - sine / 2 + cosine / 2,
        cosine,
        sine,
    )
    fixed = [np.floor(value * 65536 + 0.5) for value in values]
    return np.stack(fixed, axis=-1).astype(np.int32)
