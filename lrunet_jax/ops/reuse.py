"""LruNet's operator: one iteration of its reuse block, as a function of arrays.

    x -> shuffle -> depthwise -> norm -> pointwise, in groups -> norm -> + x -> ReLU

The original shuffles after every iteration but the last. Here each iteration shuffles
its own input, and a block begins by undoing one shuffle: that is the same network, with
identical iterations. Between a block's iterations the channels may lie in any order
that suits the lowering, so what goes from one to the next is a `ReuseCarry`.
"""

from typing import Any

import jax
from flax import struct

from lrunet_jax.ops import reuse_cpu, reuse_gpu, reuse_tpu, reuse_xla
from lrunet_jax.ops.batch_axis import BatchAxis, resolve_axis
from lrunet_jax.ops.lowerings import resolve
from lrunet_jax.ops.reuse_weights import ReuseMoments, ReuseWeights

_LOWERINGS = {"cpu": reuse_cpu, "gpu": reuse_gpu, "tpu": reuse_tpu, "xla": reuse_xla}


class ReuseCarry(struct.PyTreeNode):
    """The state of a block between two iterations.

    Attributes:
      arrays: the channels, in a form that the lowering chooses.
      lowering: in which the whole block is written.
      axis: of the devices that share the batch, if several do.
    """

    arrays: Any
    lowering: str = struct.field(pytree_node=False)
    axis: BatchAxis | None = struct.field(pytree_node=False)


def begin_reuse(x: jax.Array, *, lowering: str | None = None) -> ReuseCarry:
    """The carry for a block's first iteration.

    Args:
      x: the block's input, (C, H, W, B).
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.
    """
    lowering = resolve(lowering)
    return ReuseCarry(_LOWERINGS[lowering].begin(x), lowering, resolve_axis())


def reuse(
    carry: ReuseCarry, weights: ReuseWeights
) -> tuple[ReuseCarry, ReuseMoments | None]:
    """Applies one iteration.

    Returns:
      The carry for the next one, and None if the norms have running moments; else the
      batch's moments at both norms, as `batch_norm` returns them.
    """
    iterate = _LOWERINGS[carry.lowering].iterate
    arrays, moments = iterate(carry.arrays, weights, carry.axis)
    return carry.replace(arrays=arrays), moments


def end_reuse(carry: ReuseCarry) -> jax.Array:
    """A block's output (C, H, W, B), from the carry after its last iteration."""
    return _LOWERINGS[carry.lowering].end(carry.arrays)
