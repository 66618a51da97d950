"""The reuse block's iteration by the other operators, in any lowering of theirs.

Between two iterations x (C, H, W, B) lies as before the shuffle of the next one.
"""

import functools

import jax

from lrunet_jax.ops.batch_axis import BatchAxis
from lrunet_jax.ops.batch_norm import KEPT, normalise_by_batch, per_channel
from lrunet_jax.ops.channel_shuffle import shuffle, unshuffle
from lrunet_jax.ops.depthwise import depthwise
from lrunet_jax.ops.pointwise import by_input, pointwise
from lrunet_jax.ops.relu import relu
from lrunet_jax.ops.reuse_weights import ReuseMoments, ReuseWeights, fold


def begin(x: jax.Array) -> jax.Array:
    """Undoes the shuffle that the first iteration begins with."""
    return unshuffle(x)


def iterate(
    x: jax.Array,
    weights: ReuseWeights,
    axis: BatchAxis | None,
    lowering: str = "xla",
) -> tuple[jax.Array, ReuseMoments | None]:
    """Does what `ops.reuse` does, to x (C, H, W, B)."""
    if weights.dw_norm.running is None:
        return _iteration(x, weights, axis, lowering)
    return _folded_iteration(x, weights, lowering), None


def end(x: jax.Array) -> jax.Array:
    """Returns x, whose last iteration is followed by no shuffle."""
    return x


# Nothing but x and the moments is kept for the backward pass: what an iteration keeps
# is written and read N times.
@functools.partial(
    jax.checkpoint,
    static_argnums=(2, 3),
    policy=jax.checkpoint_policies.save_only_these_names(KEPT),
)
def _iteration(x, weights, axis, lowering):
    x = shuffle(x)
    y = depthwise(x, weights.dw, lowering=lowering)
    y, dw_moments = normalise_by_batch(y, weights.dw_norm, lowering, axis)
    y = pointwise(y, weights.pw, groups=weights.groups, lowering=lowering)
    y, pw_moments = normalise_by_batch(y, weights.pw_norm, lowering, axis)
    return relu(x + y, lowering=lowering), ReuseMoments(dw=dw_moments, pw=pw_moments)


def _folded_iteration(x, weights, lowering):
    matrices, bias = fold(weights)
    x = shuffle(x)
    y = depthwise(x, weights.dw, lowering=lowering)
    y = pointwise(y, by_input(matrices), groups=weights.groups, lowering=lowering)
    return relu(x + y + per_channel(bias), lowering=lowering).astype(x.dtype)
