"""The reuse block's iteration for TPU: channels stay, weights are reordered.

A dense matrix product costs the same in any order of the channels, and shuffling them
took a third of the step, by the TPU compiler's estimate. So the channels of x stay
where they are through the block, and an iteration's weights are brought into their
order. The place of a channel is the index that it has in the network; `order` (C,)
holds the place of each channel of x.

All permutations are products with one-hot rows: a TPU gathers element by element, and
its compiler gives no estimate of how long that takes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrunet_jax.ops.batch_axis import BatchAxis
from lrunet_jax.ops.batch_norm import KEPT, normalise_by_batch, per_channel
from lrunet_jax.ops.depthwise import depthwise
from lrunet_jax.ops.pointwise import by_group, dense_matrix, mix
from lrunet_jax.ops.relu import relu
from lrunet_jax.ops.reuse_weights import ReuseMoments, ReuseWeights, fold

Arrays = tuple[jax.Array, jax.Array]  # x and its order


def begin(x: jax.Array) -> Arrays:
    """Adds to x (C, H, W, B) the order that one shuffle turns into 0, 1, 2, ..."""
    places = np.arange(len(x), dtype=np.int32)
    half = np.where(places % 2, 0, len(x) // 2).astype(np.int32)
    return x, jnp.asarray(places // 2 + half)


def iterate(
    arrays: Arrays, weights: ReuseWeights, axis: BatchAxis | None
) -> tuple[Arrays, ReuseMoments | None]:
    """Does what `ops.reuse` does, to x and its order."""
    x, order = arrays
    # The shuffle: place p of the first half goes to 2 p + 1; of the second, to 2 p - C.
    order = (2 * order + 1) % (len(x) + 1)
    if weights.dw_norm.running is None:
        x, moments = _iteration(x, weights, order, axis)
        return (x, order), moments
    return (_folded_iteration(x, weights, order), order), None


def end(arrays: Arrays) -> jax.Array:
    """Brings each channel of x to its place: (C, H, W, B)."""
    x, order = arrays
    return _product("chwb,co->ohwb", x, _one_hot(order))


@functools.partial(  # as the plain iteration: nothing but x and the moments is kept
    jax.checkpoint,
    static_argnums=3,
    policy=jax.checkpoint_policies.save_only_these_names(KEPT),
)
def _iteration(x, weights, order, axis):
    places, outputs = _rows(order)
    permuted = lambda tree, rows: jax.tree.map(lambda a: _permuted(a, rows), tree)
    dw_norm = permuted(weights.dw_norm, outputs)
    pw_norm = permuted(weights.pw_norm, places)
    matrices = by_group(weights.pw.astype(x.dtype), weights.groups)
    y = depthwise(x, _permuted(weights.dw, outputs), lowering="tpu")
    y, dw_moments = normalise_by_batch(y, dw_norm, "tpu", axis)
    y = mix(_permuted_matrix(matrices, places, outputs), y)
    y, pw_moments = normalise_by_batch(y, pw_norm, "tpu", axis)
    moments = ReuseMoments(
        dw=permuted(dw_moments, outputs.T), pw=permuted(pw_moments, places.T)
    )
    return relu(x + y, lowering="tpu"), moments


def _folded_iteration(x, weights, order):
    places, outputs = _rows(order)
    matrices, bias = fold(weights)
    y = depthwise(x, _permuted(weights.dw, outputs), lowering="tpu")
    y = mix(_permuted_matrix(matrices.astype(x.dtype), places, outputs), y)
    out = relu(x + y + per_channel(_permuted(bias, places)), lowering="tpu")
    return out.astype(x.dtype)


def _rows(order):
    """The one-hot rows that permute C channels and 2C depthwise outputs by `order`."""
    outputs = (2 * order[:, None] + jnp.arange(2)).ravel()
    return _one_hot(order), _one_hot(outputs)


def _one_hot(order):
    return jax.nn.one_hot(order, len(order))


def _permuted(values, rows):
    """Permutes the last axis of `values` by one-hot `rows`."""
    return _product("...c,oc->...o", values, rows)


def _permuted_matrix(matrices, places, outputs):
    """The block-diagonal matrix of (groups, out, in), both sides in another order."""
    matrix = _permuted(dense_matrix(matrices), outputs)
    return _product("oi,po->pi", matrix, places)


def _product(subscripts, values, rows):
    # Exact: each sum has one term.
    rows = rows.astype(values.dtype)
    return jnp.einsum(subscripts, values, rows, precision=lax.Precision.HIGHEST)
