"""Operators on (channels, height, width, batch) arrays: what XLA does badly by itself.

The batch is the last axis, so that every sum and product runs along one contiguous
vector, and a channel is one contiguous slab.
"""

from lrunet_jax.ops.avg_pool import avg_pool
from lrunet_jax.ops.batch_norm import Moments, batch_norm, normalise
from lrunet_jax.ops.channel_shuffle import channel_shuffle
from lrunet_jax.ops.conv import conv
from lrunet_jax.ops.depthwise import depthwise
from lrunet_jax.ops.lowering import LOWERINGS, resolve
from lrunet_jax.ops.materialise import materialise
from lrunet_jax.ops.max_pool import max_pool
from lrunet_jax.ops.pointwise import pointwise
from lrunet_jax.ops.reuse import (
    Weights,
    channel_orders,
    enter_block,
    leave_block,
    reuse_eval,
    reuse_train,
    shuffle,
    unshuffle,
)

__all__ = [
    "LOWERINGS",
    "Moments",
    "Weights",
    "avg_pool",
    "batch_norm",
    "channel_orders",
    "channel_shuffle",
    "conv",
    "depthwise",
    "enter_block",
    "leave_block",
    "materialise",
    "max_pool",
    "normalise",
    "pointwise",
    "resolve",
    "reuse_eval",
    "reuse_train",
    "shuffle",
    "unshuffle",
]
