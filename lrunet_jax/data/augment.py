"""Random crop, rotation and flip, as PIL computes them, in one pass over a batch."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrunet_jax import ops

ANGLES = 1 << 16  # that a rotation is drawn from


class Transforms(NamedTuple):
    """The transforms of the images of a batch.

    Attributes:
      top: (B,) int32, the first row of the crop in the padded image.
      left: (B,) int32, its first column.
      rotation: (B, 4) int32, the `fixed_point_rotations` of its angle.
      flip: (B,) bool, whether left and right are exchanged.
    """

    top: jax.Array
    left: jax.Array
    rotation: jax.Array
    flip: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of a recipe. As the original: crop, then rotate, then flip.

    Attributes:
      size: height and width of the crop, in pixels.
      padding: zeros around the image before the crop, in pixels; the crop's offset is
        uniform. With 0, and the size of the image itself, nothing is cropped.
      rotation: the largest angle in degrees, drawn uniformly in both directions; 0
        turns it off.
      flip: whether half of the images are flipped.
    """

    size: int
    padding: int
    rotation: float
    flip: bool

    @jax.named_scope("augment")
    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> Transforms:
        """Draws the transforms of images (B, H, W, channels), by a key."""
        batch, height, width, _ = shape
        keys = jax.random.split(key, 4)
        integers = functools.partial(jax.random.randint, shape=(batch,), minval=0)
        return Transforms(
            integers(keys[0], maxval=height + 2 * self.padding - self.size + 1),
            integers(keys[1], maxval=width + 2 * self.padding - self.size + 1),
            jnp.asarray(self._rotations)[integers(keys[2], maxval=ANGLES)],
            integers(keys[3], maxval=2) < int(self.flip),
        )

    @jax.named_scope("augment")
    def apply(self, images: jax.Array, transforms: Transforms) -> jax.Array:
        """Maps images (B, H, W, channels) uint8 to (B, size, size, channels) uint8."""
        return transform(images, transforms, size=self.size, padding=self.padding)

    @functools.cached_property
    def _rotations(self):
        # Midpoints of equal steps: no angle twice, and none but 0 for a rotation of 0.
        angles = self.rotation * ((np.arange(ANGLES) + 0.5) * (2 / ANGLES) - 1)
        return fixed_point_rotations(angles, self.size)


def transform(
    images: jax.Array, transforms: Transforms, *, size: int, padding: int
) -> jax.Array:
    """Crops, rotates (nearest neighbour, zero outside) and flips.

    It computes in integers, so that all backends give the same pixels.

    Args:
      images: (B, H, W, channels) uint8.
      transforms: of the B images.
      size: of the crop, in pixels.
      padding: zeros around the image before the crop, in pixels.

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
    return ops.take_pixels(images, y, x, inside)


def fixed_point_rotations(angles: np.ndarray, size: int) -> np.ndarray:
    """PIL's coefficients of rotations about the centre of a square image.

    Output pixel (x, y) takes input pixel ((x0 + x cos + y sin) >> 16,
    (y0 - x sin + y cos) >> 16). They are computed in float64 on the host: in float32
    one in twenty of them would differ.

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
