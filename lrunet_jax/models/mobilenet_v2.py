"""MobileNetV2: inverted residuals with linear bottlenecks (arXiv 1801.04381)."""

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
    require_common_fields,
)

# Expansion, channels at width 1, blocks, stride of the first: the original's, for
# 32x32 images.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 1),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """A 3x3 convolution, 17 inverted residuals, a 1x1 convolution, a classifier.

    Attributes:
      num_classes: number of logits.
      width_mult: scales all channels, the last 1280 only above 1; at least 1 / 16,
        where the first block has one channel.
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
            int(16 * self.width_mult) >= 1,
            "width_mult",
            self.width_mult,
            "at least 0.0625, where the first block has one channel",
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
        x = Conv(width, name="features_0_0")(x)
        x = ops.relu6(BatchNorm(width, name="features_0_1")(x, train=train))
        number = 0
        for expansion, channels, blocks, first_stride in STAGES:
            for stride in (first_stride, *(1,) * (blocks - 1)):
                number += 1
                x = InvertedResidual(
                    int(channels * self.width_mult),
                    expansion,
                    stride,
                    name=f"features_{number}",
                )(x, train=train)
        width = int(1280 * max(1.0, self.width_mult))
        x = Pointwise(width, name="features_18_0")(x)
        x = ops.relu6(BatchNorm(width, name="features_18_1")(x, train=train))
        x = jnp.mean(x, axis=(1, 2))
        x = Dropout(self.drop, name="classifier_0")(x, train=train)
        return Linear(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
            name="classifier_1",
        )(x)


class InvertedResidual(nn.Module):
    """A block: pointwise to the hidden channels, depthwise, pointwise without ReLU.

    Submodules are numbered as in the original, where a ReLU6 has a number too.
    """

    channels: int
    expansion: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (inputs, H, W, B) to (channels, ceil(H / stride), ..., B)."""
        y, inputs, number = x, x.shape[0], 0
        hidden = inputs * self.expansion
        if self.expansion > 1:
            y = Pointwise(hidden, name="conv_0")(y)
            y = ops.relu6(BatchNorm(hidden, name="conv_1")(y, train=train))
            number = 3
        y = Depthwise(self.stride, name=f"conv_{number}")(y)
        y = ops.relu6(BatchNorm(hidden, name=f"conv_{number + 1}")(y, train=train))
        y = Pointwise(self.channels, name=f"conv_{number + 3}")(y)
        y = BatchNorm(self.channels, name=f"conv_{number + 4}")(y, train=train)
        y = x + y if self.stride == 1 and inputs == self.channels else y
        return ops.materialise(y)
