"""Pixels as numbers: from uint8 to what networks take."""

import jax
import jax.numpy as jnp
import numpy as np

from lrunet_jax.data.sources import Split


def to_float(images: jax.Array | np.ndarray, dtype: str = "float32") -> jax.Array:
    """Converts uint8 images to [0, 1] in `dtype`; divides in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return (jnp.asarray(images, wide) / 255).astype(dtype)


def input_stats(split: Split) -> dict[str, np.ndarray]:
    """The `mean` and `std` (channels,) float32 of a split's images, in [0, 1]."""
    channels = np.moveaxis(np.asarray(split.images), -1, 0)
    counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in channels])
    shares, levels = counts / counts[0].sum(), np.arange(256) / 255
    mean = shares @ levels
    std = np.sqrt(shares @ levels**2 - mean**2)
    return {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
