"""LruNet's operator: one iteration of its reuse block, as a function of arrays.

    x -> shuffle -> depthwise -> norm -> pointwise, in groups -> norm -> + x -> ReLU

The original shuffles after every iteration but the last. Here each iteration shuffles
its own input, and a block begins by undoing one shuffle: that is the same network, with
identical iterations. Between a block's iterations the channels may lie in any order
that suits the lowering, so what goes from one to the next is a `ReuseCarry`.
"""

import functools

import jax
from flax import struct

from lrunet_jax.ops.batch_norm import normalise_by_batch, per_channel
from lrunet_jax.ops.channel_shuffle import shuffle, unshuffle
from lrunet_jax.ops.depthwise import depthwise
from lrunet_jax.ops.lowerings import resolve
from lrunet_jax.ops.pointwise import by_input, pointwise
from lrunet_jax.ops.reuse_cpu import fits_groups, grouped_iteration
from lrunet_jax.ops.reuse_tpu import (
    in_order,
    ordered_iteration,
    shuffled_order,
    unshuffled_order,
)
from lrunet_jax.ops.reuse_weights import ReuseMoments, ReuseWeights, fold


class ReuseCarry(struct.PyTreeNode):
    """The state of a block between two iterations.

    Attributes:
      x: (C, H, W, B).
      order: (C,), where in the network each channel of x belongs; None if it lies
        there.
      lowering: in which the whole block is written.
    """

    x: jax.Array
    order: jax.Array | None
    lowering: str = struct.field(pytree_node=False)


def begin_reuse(x: jax.Array, *, lowering: str | None = None) -> ReuseCarry:
    """The carry for a block's first iteration.

    Args:
      x: the block's input, (C, H, W, B).
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.
    """
    lowering = resolve(lowering)
    if lowering == "tpu":
        return ReuseCarry(x, unshuffled_order(len(x)), lowering)
    return ReuseCarry(unshuffle(x), None, lowering)


def reuse(
    carry: ReuseCarry, weights: ReuseWeights
) -> tuple[ReuseCarry, ReuseMoments | None]:
    """Applies one iteration.

    Returns:
      The carry for the next one, and None if the norms have running moments; else the
      batch's moments at both norms, as `batch_norm` returns them.
    """
    if carry.order is not None:
        order = shuffled_order(carry.order)
        x, moments = ordered_iteration(carry.x, weights, order)
        return carry.replace(x=x, order=order), moments
    if carry.lowering == "cpu" and fits_groups(carry.x, weights):
        x, moments = grouped_iteration(carry.x, weights)
    elif weights.dw_norm.running is None:
        x, moments = _iteration(carry.x, weights, carry.lowering)
    else:
        x, moments = _folded_iteration(carry.x, weights, carry.lowering), None
    return carry.replace(x=x), moments


def end_reuse(carry: ReuseCarry) -> jax.Array:
    """A block's output (C, H, W, B), from the carry after its last iteration."""
    return carry.x if carry.order is None else in_order(carry.x, carry.order)


# Nothing but x is kept for the backward pass: what an iteration keeps is written and
# read N times.
@functools.partial(jax.checkpoint, static_argnums=2)
def _iteration(x, weights, lowering):
    x = shuffle(x)
    y = depthwise(x, weights.dw, lowering=lowering)
    y, dw_moments = normalise_by_batch(y, weights.dw_norm, lowering)
    y = pointwise(y, weights.pw, groups=weights.groups, lowering=lowering)
    y, pw_moments = normalise_by_batch(y, weights.pw_norm, lowering)
    return jax.nn.relu(x + y), ReuseMoments(dw=dw_moments, pw=pw_moments)


def _folded_iteration(x, weights, lowering):
    matrices, bias = fold(weights)
    x = shuffle(x)
    y = depthwise(x, weights.dw, lowering=lowering)
    y = pointwise(y, by_input(matrices), groups=weights.groups, lowering=lowering)
    return jax.nn.relu(x + y + per_channel(bias)).astype(x.dtype)
