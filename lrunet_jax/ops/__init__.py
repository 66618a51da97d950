"""Operators on (channels, height, width, batch) arrays, where XLA's own are slow.

The batch is the last axis, so that every sum and product runs along one contiguous
vector, and a channel is one contiguous slab. How an operator is written for a
backend's compiler, its lowering, follows from the platform or from a context:

    with ops.lowering("xla"):
        logits = model.apply(variables, images)
"""

from lrunet_jax.ops.avg_pool import avg_pool
from lrunet_jax.ops.batch_axis import batch_axis, over_batch, own_share
from lrunet_jax.ops.batch_norm import Moments, Norm, batch_norm
from lrunet_jax.ops.channel_shuffle import channel_shuffle
from lrunet_jax.ops.conv import conv
from lrunet_jax.ops.depthwise import depthwise
from lrunet_jax.ops.dropout import dropout
from lrunet_jax.ops.lowerings import (
    LOWERINGS,
    lowering,
    of_platform,
    resolve,
    shapes_alone,
)
from lrunet_jax.ops.materialise import materialise
from lrunet_jax.ops.max_pool import max_pool
from lrunet_jax.ops.pointwise import pointwise
from lrunet_jax.ops.relu import relu, relu6
from lrunet_jax.ops.reuse import ReuseCarry, begin_reuse, end_reuse, reuse
from lrunet_jax.ops.reuse_weights import ReuseWeights
from lrunet_jax.ops.take_pixels import take_pixels

__all__ = [
    "LOWERINGS",
    "Moments",
    "Norm",
    "ReuseCarry",
    "ReuseWeights",
    "avg_pool",
    "batch_axis",
    "batch_norm",
    "begin_reuse",
    "channel_shuffle",
    "conv",
    "depthwise",
    "dropout",
    "end_reuse",
    "lowering",
    "materialise",
    "max_pool",
    "of_platform",
    "over_batch",
    "own_share",
    "pointwise",
    "relu",
    "relu6",
    "resolve",
    "reuse",
    "shapes_alone",
    "take_pixels",
]
