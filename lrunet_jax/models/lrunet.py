"""LruNet: a network whose blocks apply the same two convolutions N times.

"Convolutional Neural Networks with Layer Reuse", arXiv 1901.09615.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from lrunet_jax import ops
from lrunet_jax.errors import require
from lrunet_jax.models.layers import (
    BatchNorm,
    Conv,
    Kernel,
    Pointwise,
    channels_first,
    require_common_fields,
)

GROUPS = 8  # of every pointwise convolution but the last
STEM_CHANNELS = 64  # at every width, as the original


class LruNet(nn.Module):
    """Four reuse blocks; 64, 128, 256 and 512 channels at width 1.

    The stem has 64 channels at every width. The first block takes as many as its
    width asks for: the 64 over and over, cut to measure. At width 2 that is the
    original's [x, x], at width 1 the stem's output itself.

    Attributes:
      num_classes: logits.
      width_mult: scales the channels of the blocks: a multiple of 1 / 8, so that
        every stage makes whole groups of 8.
      layer_reuse: iterations N of each block, at least 1.
      drop: dropout rate before the last convolution.
      unroll: iterations in one trip of the block's loop; takes part in compile and
        step time alone.
      lowering: of the operators: `auto` or one of `ops.LOWERINGS`.

    Raises:
      InputError: on construction, for a field outside these.
    """

    num_classes: int = 10
    width_mult: float = 1.0
    layer_reuse: int = 8
    drop: float = 0.5
    unroll: int = 1
    lowering: str = "auto"

    def __post_init__(self) -> None:
        require_common_fields(self)
        require(
            self.width_mult * STEM_CHANNELS % GROUPS == 0,
            "width_mult",
            self.width_mult,
            "a multiple of 0.125, for whole groups of 8 channels",
        )
        require(self.layer_reuse >= 1, "layer_reuse", self.layer_reuse, "at least 1")
        require(self.unroll >= 1, "unroll", self.unroll, "at least 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits, never negative.

        Args:
          images: (B, H, W, channels) in [0, 1]; their dtype is the network's.
          train: normalise by the batch and drop out. Needs `mutable=["batch_stats"]`
            and, unless `drop` is 0, the rng `dropout`.

        Returns:
          (B, num_classes).
        """
        norm = functools.partial(BatchNorm, lowering=self.lowering)
        width = round(STEM_CHANNELS * self.width_mult)
        x = channels_first(self, images)
        x = Conv(STEM_CHANNELS, stride=2, lowering=self.lowering, name="features_0")(x)
        x = nn.relu(norm(STEM_CHANNELS, name="features_1")(x, train=train))
        x = x[jnp.arange(width) % STEM_CHANNELS] if width != STEM_CHANNELS else x
        x = self._pool(self._block(x, train, name="stage1"))
        x = self._pool(self._block(widen(x), train, name="stage2"))
        x = self._block(widen(x), train, name="stage3")  # no pooling, as the original
        x = self._pool(self._block(widen(x), train, name="stage4"))
        x = Pointwise(
            4 * width, groups=GROUPS, lowering=self.lowering, name="classifier_0"
        )(x)
        x = nn.relu(norm(4 * width, name="classifier_1")(x, train=train))
        x = nn.Dropout(self.drop, deterministic=not train, name="classifier_3")(x)
        x = Pointwise(
            self.num_classes, use_bias=True, lowering=self.lowering, name="classifier_4"
        )(x)
        return jnp.mean(nn.relu(x), axis=(1, 2)).T  # ReLU: a quirk of the original

    def _block(self, x, train, name):
        block = ReuseBlock(self.layer_reuse, self.unroll, self.lowering, name=name)
        return block(x, train=train)

    def _pool(self, x):
        return ops.max_pool(x, lowering=self.lowering)


def widen(x: jax.Array) -> jax.Array:
    """[x, x] along the channels."""
    return jnp.concatenate([x, x])


class ReuseBlock(nn.Module):
    """One depthwise and one pointwise convolution, applied N times.

    The two kernels are shared by all iterations. Each iteration has two batch norms
    of its own, stacked along a leading axis of N.
    """

    layer_reuse: int
    unroll: int = 1
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(C, H, W, B) to the same."""
        channels = x.shape[0]
        dw = Kernel((3, 3, 1, 2 * channels), name="dw")()
        pw = Kernel((1, 1, 2 * channels // GROUPS, channels), name="pw")()
        iterations = nn.scan(
            ReuseIteration,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=self.layer_reuse,
            unroll=min(self.unroll, self.layer_reuse),
            check_constancy_invariants=False,  # the check traces a block once more
        )(train, self.lowering, name="iterations")
        orders = ops.channel_orders(channels, self.layer_reuse, lowering=self.lowering)
        x = ops.enter_block(x, lowering=self.lowering)
        x, _ = iterations(x, orders, (dw, pw))
        return ops.leave_block(x, self.layer_reuse, lowering=self.lowering)


class ReuseIteration(nn.Module):
    """shuffle, depthwise, norm, pointwise, norm, residual, ReLU."""

    train: bool
    lowering: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        order: jax.Array | None,
        kernels: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, None]:
        """(C, H, W, B), its order and the block's two kernels to (C, H, W, B)."""
        channels = x.shape[0]
        dw_norm = BatchNorm(2 * channels, name="dw_bn_list")
        pw_norm = BatchNorm(channels, name="pw_bn_list")
        weights = ops.Weights(
            *kernels, dw_norm.scale, dw_norm.bias, pw_norm.scale, pw_norm.bias
        )
        if not self.train:
            met = (dw_norm.running(), pw_norm.running())
            x = ops.reuse_eval(x, weights, *met, order, lowering=self.lowering)
            return x, None
        x, (dw_met, pw_met) = ops.reuse_train(x, weights, order, lowering=self.lowering)
        dw_norm.update(dw_met, x[0].size)
        pw_norm.update(pw_met, x[0].size)
        return x, None
