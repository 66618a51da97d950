"""MobileNet: depthwise separable convolutions (arXiv 1704.04861)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lrunet_jax import ops
from lrunet_jax.errors import require
from lrunet_jax.models.layers import (
    BatchNorm,
    Conv,
    Depthwise,
    Dropout,
    Linear,
    Pointwise,
    channels_first,
    fan_in_uniform,
    require_common_fields,
)

# Channels at width 1, blocks, stride of the first: the original's, for 32x32 images.
STAGES = ((64, 1, 2), (128, 2, 2), (256, 2, 1), (512, 6, 2), (1024, 2, 1))


class MobileNet(nn.Module):
    """A 3x3 convolution, 13 depthwise separable blocks, a linear classifier.

    Attributes:
      num_classes: number of logits.
      width_mult: scales all channels; at least 1 / 32, where the stem has one.
      drop: dropout rate before the classifier.

    Raises:
      InputError: on construction, for a value that is not allowed.
    """

    num_classes: int = 10
    width_mult: float = 1.0
    drop: float = 0.2

    def __post_init__(self) -> None:
        require_common_fields(self)
        require(
            int(32 * self.width_mult) >= 1,
            "width_mult",
            self.width_mult,
            "at least 0.03125, where the stem has one channel",
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits (B, num_classes).

        Args:
          images: (B, H, W, channels) in [0, 1]; their dtype is the network's.
          train: normalise by the batch and drop out. Needs `mutable=["batch_stats"]`
            and, unless `drop` is 0, the rng `dropout`.
        """
        x = channels_first(self, images)
        width = int(32 * self.width_mult)
        x = Conv(width, kernel_init=fan_in_uniform, name="features_0_0")(x)
        x = ops.relu(BatchNorm(width, name="features_0_1")(x, train=train))
        number = 0
        for channels, blocks, first_stride in STAGES:
            for stride in (first_stride, *(1,) * (blocks - 1)):
                number += 1
                x = DepthwiseSeparable(
                    int(channels * self.width_mult),
                    stride,
                    name=f"features_{number}",
                )(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        x = Dropout(self.drop, name="classifier_0")(x, train=train)
        return Linear(self.num_classes, name="classifier_1")(x)


class DepthwiseSeparable(nn.Module):
    """A block: depthwise, norm, ReLU, pointwise, norm, ReLU."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (inputs, H, W, B) to (channels, ceil(H / stride), ..., B)."""
        inputs = x.shape[0]
        x = Depthwise(self.stride, kernel_init=fan_in_uniform, name="conv1")(x)
        x = ops.relu(BatchNorm(inputs, name="bn1")(x, train=train))
        x = Pointwise(self.channels, kernel_init=fan_in_uniform, name="conv2")(x)
        return ops.relu(BatchNorm(self.channels, name="bn2")(x, train=train))
