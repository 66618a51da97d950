"""ShuffleNet: grouped pointwise convolutions and channel shuffle (arXiv 1707.01083)."""

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

STEM_CHANNELS = 24
# Channels of the three stages at width 1, by groups: the paper's table 1. The
# original has 3 and 8 of these.
PLANES = {
    1: (144, 288, 576),
    2: (200, 400, 800),
    3: (240, 480, 960),
    4: (272, 544, 1088),
    8: (384, 768, 1536),
}
BLOCKS = (4, 8, 4)


class ShuffleNet(nn.Module):
    """A 3x3 convolution, three stages of bottlenecks, a linear classifier.

    Attributes:
      num_classes: number of logits.
      width_mult: scales all channels; `groups` must divide what comes of it.
      groups: of the pointwise convolutions: 1, 2, 3, 4 or 8.

    Raises:
      InputError: on construction, for a value that is not allowed.
    """

    num_classes: int = 10
    width_mult: float = 1.0
    groups: int = 3

    def __post_init__(self) -> None:
        require_common_fields(self)
        require(
            self.groups in PLANES,
            "groups",
            self.groups,
            f"one of {', '.join(map(str, PLANES))}",
        )
        for channels in (self.scaled(STEM_CHANNELS), *self.stage_channels()):
            require(
                channels % self.groups == 0,
                "width_mult",
                self.width_mult,
                f"such that {self.groups} groups divide all channels; they do not "
                f"divide {channels}",
            )
        require(
            self.scaled(STEM_CHANNELS) >= 1,
            "width_mult",
            self.width_mult,
            f"at least {1 / STEM_CHANNELS:.4f}, where the stem has one channel",
        )
        super().__post_init__()

    @nn.nowrap  # `__post_init__` calls it, before there is a module
    def scaled(self, channels: int) -> int:
        """The number of channels at this width, for `channels` at width 1."""
        return int(channels * self.width_mult)

    @nn.nowrap
    def stage_channels(self) -> list[int]:
        """The output channels of each stage."""
        return [self.scaled(channels) for channels in PLANES[self.groups]]

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits (B, num_classes).

        Args:
          images: (B, H, W, channels) in [0, 1]; their dtype is the network's.
          train: normalise by the batch. Needs `mutable=["batch_stats"]`.
        """
        x = channels_first(self, images)
        width = self.scaled(STEM_CHANNELS)
        x = Conv(width, kernel_init=fan_in_uniform, name="conv1")(x)
        x = ops.relu(BatchNorm(width, name="bn1")(x, train=train))
        stages = zip(self.stage_channels(), BLOCKS, strict=True)
        for stage, (channels, blocks) in enumerate(stages, start=1):
            for block in range(blocks):
                x = Bottleneck(
                    channels,
                    self.groups,
                    2 if block == 0 else 1,
                    name=f"layer{stage}_{block}",
                )(x, train=train)
        return Linear(self.num_classes, name="linear")(jnp.mean(x, axis=(1, 2)))


class Bottleneck(nn.Module):
    """A block: grouped pointwise, shuffle, depthwise, pointwise, beside a shortcut.

    At stride 2 the shortcut is an average pooling, whose channels are put before the
    others; at stride 1 the input itself is added.
    """

    channels: int
    groups: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (inputs, H, W, B) to (channels, ceil(H / stride), ..., B)."""
        out = self.channels - x.shape[0] if self.stride == 2 else self.channels
        mid = out // (4 * self.groups) * self.groups
        y = Pointwise(mid, self.groups, kernel_init=fan_in_uniform, name="conv1")(x)
        y = ops.relu(BatchNorm(mid, name="bn1")(y, train=train))
        y = ops.channel_shuffle(y, self.groups)
        y = Depthwise(self.stride, kernel_init=fan_in_uniform, name="conv2")(y)
        # The paper has no ReLU here; the original has.
        y = ops.relu(BatchNorm(mid, name="bn2")(y, train=train))
        y = Pointwise(out, self.groups, kernel_init=fan_in_uniform, name="conv3")(y)
        y = BatchNorm(out, name="bn3")(y, train=train)
        if self.stride == 1:
            return ops.materialise(ops.relu(x + y))
        shortcut = ops.avg_pool(x)
        y = ops.relu(jnp.concatenate([y, shortcut]))
        return ops.materialise(y)
