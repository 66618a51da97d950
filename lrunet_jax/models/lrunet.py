"""LruNet: a network whose blocks apply the same two convolutions N times.

"Convolutional Neural Networks with Layer Reuse", arXiv 1901.09615.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lrunet_jax import ops
from lrunet_jax.errors import require
from lrunet_jax.models.costs import Layer, layer
from lrunet_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Kernel,
    Pointwise,
    channels_first,
    require_common_fields,
)

GROUPS = 8  # of every pointwise convolution but the last
MAX_REUSE = 1000  # each iteration keeps its input in training; the paper's most are 14
STEM_CHANNELS = 64  # at every width, as the original


class LruNet(nn.Module):
    """Four reuse blocks; 64, 128, 256 and 512 channels at width 1.

    The stem has 64 channels at every width. Where the first block takes more, the
    stem's channels are repeated; where it takes fewer, the first ones are taken. At
    width 2 that is the original's concatenation of the stem's output with itself.

    Attributes:
      num_classes: number of logits.
      width_mult: scales the channels of the blocks: a multiple of 1 / 8, so that
        every stage makes whole groups of 8.
      layer_reuse: iterations N of each block, at least 1.
      drop: dropout rate before the last convolution.

    Raises:
      InputError: on construction, for a value that is not allowed.
    """

    num_classes: int = 10
    width_mult: float = 1.0
    layer_reuse: int = 8
    drop: float = 0.5

    def __post_init__(self) -> None:
        require_common_fields(self)
        require(
            self.width_mult * STEM_CHANNELS % GROUPS == 0,
            "width_mult",
            self.width_mult,
            "a multiple of 0.125, for whole groups of 8 channels",
        )
        times = self.layer_reuse
        require(1 <= times <= MAX_REUSE, "layer_reuse", times, f"in [1, {MAX_REUSE:,}]")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Computes the logits; never negative, as the original ends with a ReLU.

        Args:
          images: (B, H, W, channels) in [0, 1]; their dtype is the network's.
          train: normalise by the batch and drop out. Needs `mutable=["batch_stats"]`
            and, unless `drop` is 0, the rng `dropout`.

        Returns:
          (B, num_classes).
        """
        width = round(STEM_CHANNELS * self.width_mult)
        x = channels_first(self, images)
        x = Conv(STEM_CHANNELS, stride=2, name="features_0")(x)
        x = ops.relu(BatchNorm(STEM_CHANNELS, name="features_1")(x, train=train))
        x = x[jnp.arange(width) % STEM_CHANNELS] if width != STEM_CHANNELS else x
        x = ReuseBlock(self.layer_reuse, name="stage1")(x, train=train)
        x = widen(ops.max_pool(x))
        x = ReuseBlock(self.layer_reuse, name="stage2")(x, train=train)
        x = widen(ops.max_pool(x))
        x = ReuseBlock(self.layer_reuse, name="stage3")(x, train=train)
        x = widen(x)  # without pooling, as the original
        x = ReuseBlock(self.layer_reuse, name="stage4")(x, train=train)
        x = ops.max_pool(x)
        x = Pointwise(4 * width, GROUPS, name="classifier_0")(x)
        x = ops.relu(BatchNorm(4 * width, name="classifier_1")(x, train=train))
        x = Dropout(self.drop, name="classifier_3")(x, train=train)
        x = Pointwise(self.num_classes, use_bias=True, name="classifier_4")(x)
        return jnp.mean(ops.relu(x), axis=(1, 2)).T  # ReLU: a quirk of the original


def widen(x: jax.Array) -> jax.Array:
    """Repeats the channels: (C, H, W, B) to (2C, H, W, B)."""
    return jnp.concatenate([x, x])


class ReuseBlock(nn.Module):
    """One depthwise and one pointwise convolution, applied N times.

    The two kernels are shared by all iterations. Each iteration has two batch norms
    of its own, stacked along a leading axis of N.
    """

    layer_reuse: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (C, H, W, B) to the same shape."""
        channels = x.shape[0]
        dw = Kernel((3, 3, 1, 2 * channels), name="dw")()
        pw = Kernel((1, 1, 2 * channels // GROUPS, channels), name="pw")()
        iterations = nn.scan(
            ReuseIteration,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layer_reuse,
            check_constancy_invariants=False,  # the check traces a block once more
        )(train, name="iterations")
        carry, _ = iterations(ops.begin_reuse(x), dw, pw)
        return ops.end_reuse(carry)

    @nn.nowrap
    def costs(self, out: jax.Array) -> list[Layer]:
        """The costs of both kernels over N iterations, for the block's output `out`."""
        channels, height, width, _ = out.shape
        params, times = self.variables["params"], self.layer_reuse
        outputs = {"dw": (height, width, 2 * channels), "pw": (height, width, channels)}
        return [
            layer((*self.path, name), params[name], output, times)
            for name, output in outputs.items()
        ]


class ReuseIteration(nn.Module):
    """An iteration: shuffle, depthwise, norm, pointwise, norm, residual, ReLU."""

    train: bool

    @nn.compact
    def __call__(
        self, carry: ops.ReuseCarry, dw: jax.Array, pw: jax.Array
    ) -> tuple[ops.ReuseCarry, None]:
        """Applies the iteration to a block's carry, by the block's two kernels."""
        channels = pw.shape[3]
        dw_norm = BatchNorm(2 * channels, name="dw_bn_list")
        pw_norm = BatchNorm(channels, name="pw_bn_list")
        weights = ops.ReuseWeights(
            dw=dw,
            pw=pw,
            dw_norm=dw_norm.norm(train=self.train),
            pw_norm=pw_norm.norm(train=self.train),
        )
        carry, moments = ops.reuse(carry, weights)
        if moments is not None:
            dw_norm.update(moments.dw)
            pw_norm.update(moments.pw)
        return carry, None
