"""The targets that logits are compared with: labels, smoothed and mixed."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Targets = Callable[..., tuple[jax.Array, jax.Array]]


@functools.cache  # equal recipes are one function, and one compiled program
def make_targets(
    num_classes: int, label_smoothing: float = 0.0, mixup: float = 0.0
) -> Targets:
    """The targets of a recipe, as a function of a key, images and labels.

    Args:
      num_classes: of the data set.
      label_smoothing: the share of each target that is spread evenly over all classes.
      mixup: alpha of mixup (arXiv 1710.09412): the batch becomes a mixture of itself
        and of itself reversed, its share drawn from Beta(alpha, alpha); 0 for none.

    Returns:
      (key, images (B, H, W, channels), labels (B,), mirrored=None) -> (images, targets
      (B, classes)). `mirrored` are the images and labels at the mirrored places of a
      batch that devices share; None where the batch is whole.
    """

    def smoothed(images, labels):
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        one_hot = jax.nn.one_hot(labels, num_classes, dtype=dtype)
        return images, optax.smooth_labels(one_hot, label_smoothing)

    def plain(key, images, labels, mirrored=None):
        return smoothed(images, labels)

    def mixed(key, images, labels, mirrored=None):
        mirrored = mirrored or (images[::-1], labels[::-1])
        share = jax.random.beta(key, mixup, mixup)
        mix = lambda x, y: (share * x + (1 - share) * y).astype(x.dtype)
        return jax.tree.map(mix, smoothed(images, labels), smoothed(*mirrored))

    return mixed if mixup else plain
