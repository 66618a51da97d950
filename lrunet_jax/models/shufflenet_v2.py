"""ShuffleNetV2: channel split in place of groups (arXiv 1807.11164)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lrunet_jax import ops
from lrunet_jax.errors import require
from lrunet_jax.models.layers import (
    BatchNorm,
    Conv,
    Depthwise,
    Linear,
    Pointwise,
    channels_first,
    fan_in_uniform,
    require_common_fields,
)

STEM_CHANNELS = 24  # at every width
# Channels of the three stages and of the last convolution, by width. The paper has
# 244 where the original has 224.
CHANNELS = {
    0.25: (32, 64, 128, 1024),
    0.5: (48, 96, 192, 1024),
    0.75: (60, 120, 240, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (224, 488, 976, 2048),
}
BLOCKS = (4, 8, 4)


class ShuffleNetV2(nn.Module):
    """A 3x3 convolution, three stages of blocks, a 1x1 convolution, a classifier.

    Attributes:
      num_classes: number of logits.
      width_mult: 0.25, 0.5, 0.75, 1.0, 1.5 or 2.0.

    Raises:
      InputError: on construction, for a value that is not allowed.
    """

    num_classes: int = 10
    width_mult: float = 1.0

    def __post_init__(self) -> None:
        require_common_fields(self)
        require(
            self.width_mult in CHANNELS,
            "width_mult",
            self.width_mult,
            f"one of {', '.join(map(str, CHANNELS))}",
        )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits (B, num_classes).

        Args:
          images: (B, H, W, channels) in [0, 1]; their dtype is the network's.
          train: normalise by the batch. Needs `mutable=["batch_stats"]`.
        """
        x = channels_first(self, images)
        x = Conv(STEM_CHANNELS, kernel_init=fan_in_uniform, name="conv1")(x)
        x = ops.relu(BatchNorm(STEM_CHANNELS, name="bn1")(x, train=train))
        *stages, last = CHANNELS[self.width_mult]
        for stage, (channels, blocks) in enumerate(
            zip(stages, BLOCKS, strict=True), start=1
        ):
            x = DownBlock(channels, name=f"layer{stage}_0")(x, train=train)
            for block in range(1, blocks):
                x = BasicBlock(name=f"layer{stage}_{block}")(x, train=train)
        x = Pointwise(last, kernel_init=fan_in_uniform, name="conv2")(x)
        x = ops.relu(BatchNorm(last, name="bn2")(x, train=train))
        return Linear(self.num_classes, name="linear")(jnp.mean(x, axis=(1, 2)))


class BasicBlock(nn.Module):
    """A block that passes half of its channels on, and the others through layers."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (C, H, W, B) to the same shape."""
        left, right = jnp.split(x, 2)
        half = len(left)
        right = Pointwise(half, kernel_init=fan_in_uniform, name="conv1")(right)
        right = ops.relu(BatchNorm(half, name="bn1")(right, train=train))
        right = Depthwise(kernel_init=fan_in_uniform, name="conv2")(right)
        right = BatchNorm(half, name="bn2")(right, train=train)
        right = Pointwise(half, kernel_init=fan_in_uniform, name="conv3")(right)
        right = ops.relu(BatchNorm(half, name="bn3")(right, train=train))
        x = ops.channel_shuffle(jnp.concatenate([left, right]), 2)
        return ops.materialise(x)


class DownBlock(nn.Module):
    """A block that makes both halves of its output of all channels, at stride 2."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (inputs, H, W, B) to (channels, ceil(H / 2), ceil(W / 2), B)."""
        inputs, half = len(x), self.channels // 2
        left = Depthwise(stride=2, kernel_init=fan_in_uniform, name="conv1")(x)
        left = BatchNorm(inputs, name="bn1")(left, train=train)
        left = Pointwise(half, kernel_init=fan_in_uniform, name="conv2")(left)
        left = ops.relu(BatchNorm(half, name="bn2")(left, train=train))
        right = Pointwise(half, kernel_init=fan_in_uniform, name="conv3")(x)
        right = ops.relu(BatchNorm(half, name="bn3")(right, train=train))
        right = Depthwise(stride=2, kernel_init=fan_in_uniform, name="conv4")(right)
        right = BatchNorm(half, name="bn4")(right, train=train)
        right = Pointwise(half, kernel_init=fan_in_uniform, name="conv5")(right)
        right = ops.relu(BatchNorm(half, name="bn5")(right, train=train))
        x = ops.channel_shuffle(jnp.concatenate([left, right]), 2)
        return ops.materialise(x)
