"""Prediction: what a trained network takes images for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lrunet_jax import data
from lrunet_jax.errors import InputError
from lrunet_jax.models.layers import require_image_shape


def classify(model: nn.Module, variables: Any, images: Any) -> np.ndarray:
    """The probabilities of the classes of some images.

        model, variables = lrunet_jax.load("cifar10-lru14")
        probabilities = lrunet_jax.classify(model, variables, images)

    Computed in float32 at the highest precision, as evaluations are, on the default
    device. A program is compiled for each new shape of images.

    Args:
      model: the network.
      variables: `params`, `batch_stats` and, if it normalises images, `input_stats`.
      images: (B, H, W, channels), uint8 or floats in [0, 1].

    Returns:
      (B, classes) float32; each row sums to 1.

    Raises:
      InputError: for images of another shape than the network takes, of another dtype,
        or with values beyond [0, 1].
    """
    try:
        pixels = np.asarray(images)
    except ValueError:  # a list of several shapes
        raise InputError(
            "images are of several shapes; they must be one array (B, H, W, channels)"
        ) from None
    require_image_shape(pixels.shape, "channels")
    if pixels.dtype != np.uint8:
        _require_fractions(pixels)
        pixels = pixels.astype(np.float32)
    with jax.default_matmul_precision("highest"):
        return np.asarray(_probabilities(model, variables, pixels))


def _require_fractions(images):
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images are {images.dtype}; they must be uint8, or floats in [0, 1]"
        )
    low, high = float(images.min(initial=0)), float(images.max(initial=0))
    if not (low >= 0 and high <= 1):  # as of NaN
        raise InputError(
            f"images have values from {low:g} to {high:g}; they must be uint8, or "
            "floats in [0, 1]"
        )


@functools.partial(jax.jit, static_argnums=0)  # once for equal models
def _probabilities(model, variables, images):
    if images.dtype == jnp.uint8:
        images = data.to_float(images)
    logits = model.apply(variables, images, train=False)
    return jax.nn.softmax(logits.astype(jnp.float32))
