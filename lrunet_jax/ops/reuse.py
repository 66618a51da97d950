"""One iteration of LruNet's reuse block, as a function of arrays.

    x -> shuffle -> depthwise -> norm -> pointwise, 8 groups -> norm -> + x -> ReLU

The original shuffles after every iteration but the last. Here each iteration shuffles
its own input, and a block undoes one shuffle first (`enter_block`): the same network,
and all iterations are alike. In the `dense` lowering the channels stay where they are,
and the weights are brought into their order instead (`channel_orders`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrunet_jax.ops.batch_norm import (
    Moments,
    batch_moments,
    batch_norm,
    normalise,
    per_channel,
    rsqrt,
)
from lrunet_jax.ops.blocks import merge, split
from lrunet_jax.ops.depthwise import (
    by_channel,
    by_position,
    depthwise,
    shifted_sum,
    shifted_sum_gradients,
)
from lrunet_jax.ops.lowering import resolve
from lrunet_jax.ops.materialise import in_memory
from lrunet_jax.ops.pointwise import by_group, by_input, dense_matrix, mix, pointwise

GROUPS = 8  # of the pointwise convolution


class Weights(NamedTuple):
    """What one iteration multiplies and adds.

    The kernels are the block's: dw (3, 3, 1, 2C) and pw (1, 1, C / 4, C). Scales and
    biases are the iteration's own: (2C,) of the first norm and (C,) of the second.
    """

    dw: jax.Array
    pw: jax.Array
    dw_scale: jax.Array
    dw_bias: jax.Array
    pw_scale: jax.Array
    pw_bias: jax.Array


def enter_block(x: jax.Array, *, lowering: str = "auto") -> jax.Array:
    """What a block's first iteration takes, from the block's input."""
    return x if _keeps_channels(lowering) else unshuffle(x)


def leave_block(x: jax.Array, iterations: int, *, lowering: str = "auto") -> jax.Array:
    """A block's output, from what its last iteration gives."""
    if not _keeps_channels(lowering):
        return x
    last = jnp.asarray(_orders(len(x), iterations)[-1])
    return _product("chwb,co->ohwb", x, _one_hot(last))


def channel_orders(
    channels: int, iterations: int, *, lowering: str = "auto"
) -> jax.Array | None:
    """How iterations find the channels, where they leave them in place.

    Returns:
      (iterations, channels): channel c of the array is, once shuffled, the network's
      channel orders[i, c]. None for the lowerings that shuffle.
    """
    if not _keeps_channels(lowering):
        return None
    return jnp.asarray(_orders(channels, iterations))


def _keeps_channels(lowering):
    # To a dense matrix one order of its channels is as good as another, and the
    # shuffles took a third of its step, by the TPU compiler's estimate.
    return resolve(lowering) == "dense"


def _orders(channels, iterations):
    goes_to = np.argsort(_interleave(np.arange(channels).reshape(2, -1)))
    orders = [np.arange(channels)]
    for _ in range(iterations - 1):
        orders.append(goes_to[orders[-1]])
    return np.stack(orders)


def reuse_train(
    x: jax.Array,
    weights: Weights,
    order: jax.Array | None = None,
    *,
    lowering: str = "auto",
) -> tuple[jax.Array, tuple[Moments, Moments]]:
    """An iteration that normalises by the batch's own moments.

    Args:
      x: (C, H, W, B), C a multiple of 8.
      weights: kernels, scales and biases.
      order: the iteration's row of `channel_orders`, if there are any.
      lowering: `auto` or one of `LOWERINGS`.

    Returns:
      The output (C, H, W, B) and the moments that the two norms met, which carry no
      gradient.
    """
    lowering = resolve(lowering)
    if order is not None:
        return _ordered_train(x, weights, order)
    if _is_grouped(x, lowering):
        return _mapped_train(x, weights)
    return _composed_train(x, weights, lowering)


def reuse_eval(
    x: jax.Array,
    weights: Weights,
    dw_moments: Moments,
    pw_moments: Moments,
    order: jax.Array | None = None,
    *,
    lowering: str = "auto",
) -> jax.Array:
    """An iteration that normalises by given moments, folded into the kernels.

    Nothing between the depthwise convolution and the addition is nonlinear, so both
    norms fold into the pointwise kernel and one bias.
    """
    lowering = resolve(lowering)
    dw_factor = weights.dw_scale * rsqrt(dw_moments)
    pw_factor = weights.pw_scale * rsqrt(pw_moments)
    matrices = by_group(weights.pw, GROUPS)
    dw_bias = split(weights.dw_bias - dw_factor * dw_moments.mean, GROUPS)
    shift = merge(jnp.einsum("goi,gi->go", matrices, dw_bias)) - pw_moments.mean
    bias = weights.pw_bias + pw_factor * shift
    matrices *= split(dw_factor, GROUPS)[:, None] * split(pw_factor, GROUPS)[..., None]
    if order is not None:
        places, outputs = _places(order)
        y = depthwise(x, _permuted(weights.dw, outputs), lowering=lowering)
        y = mix(_permuted_matrix(matrices.astype(x.dtype), places, outputs), y)
        bias = _permuted(bias, places)
        return jax.nn.relu(x + y + per_channel(bias)).astype(x.dtype)
    if _is_grouped(x, lowering):
        return _mapped_eval(x, weights.dw, matrices, bias)
    x = shuffle(x)
    y = depthwise(x, weights.dw, lowering=lowering)
    y = pointwise(y, by_input(matrices), groups=GROUPS, lowering=lowering)
    return jax.nn.relu(x + y + per_channel(bias)).astype(x.dtype)


# Nothing but x is kept for the backward pass: what an iteration keeps is written and
# read N times.
@functools.partial(jax.checkpoint, static_argnums=2)
def _composed_train(x, weights, lowering):
    x = shuffle(x)
    y = depthwise(x, weights.dw, lowering=lowering)
    y, dw_moments = batch_norm(y, weights.dw_scale, weights.dw_bias, lowering=lowering)
    y = pointwise(y, weights.pw, groups=GROUPS, lowering=lowering)
    y, pw_moments = batch_norm(y, weights.pw_scale, weights.pw_bias, lowering=lowering)
    return jax.nn.relu(x + y), lax.stop_gradient((dw_moments, pw_moments))


@jax.checkpoint
def _ordered_train(x, weights, order):
    places, outputs = _places(order)
    dw, dw_scale, dw_bias = (_permuted(w, outputs) for w in (weights.dw, *weights[2:4]))
    pw_scale, pw_bias = (_permuted(w, places) for w in weights[4:])
    matrices = by_group(weights.pw.astype(x.dtype), GROUPS)
    y = depthwise(x, dw, lowering="dense")
    y, dw_moments = batch_norm(y, dw_scale, dw_bias, lowering="dense")
    y = mix(_permuted_matrix(matrices, places, outputs), y)
    y, pw_moments = batch_norm(y, pw_scale, pw_bias, lowering="dense")
    back = lambda moments, rows: Moments(*(_permuted(m, rows.T) for m in moments))
    met = back(dw_moments, outputs), back(pw_moments, places)
    return jax.nn.relu(x + y), lax.stop_gradient(met)


# Permutations are products with one-hot rows: a TPU gathers element by element, and
# its compiler does not even estimate for how long.


def _places(order):
    """Rows that permute the C channels, and the 2C depthwise outputs, by `order`."""
    outputs = (2 * order[:, None] + jnp.arange(2)).ravel()
    return _one_hot(order), _one_hot(outputs)


def _one_hot(order):
    return jax.nn.one_hot(order, len(order))


def _permuted(values, rows):
    """(..., C) -> (..., C), in the order of `rows`."""
    return _product("...c,oc->...o", values, rows)


def _permuted_matrix(matrices, places, outputs):
    """The block-diagonal matrix of (groups, out, in), both sides in another order."""
    matrix = _permuted(dense_matrix(matrices), outputs)
    return _product("oi,po->pi", matrix, places)


def _product(subscripts, values, rows):
    # Exact: each sum has one term.
    rows = rows.astype(values.dtype)
    return jnp.einsum(subscripts, values, rows, precision=lax.Precision.HIGHEST)


def _is_grouped(x, lowering):
    # A group of an odd size is not made of equal parts of the two halves.
    return lowering == "mapped" and x.shape[0] % (2 * GROUPS) == 0


def shuffle(x: jax.Array) -> jax.Array:
    """Swaps the halves of the channels, then interleaves them."""
    return _interleave(split(x, 2))


def unshuffle(x: jax.Array) -> jax.Array:
    """The inverse of `shuffle`."""
    return jnp.concatenate([x[1::2], x[0::2]])


# --- mapped: one group of channels at a time --------------------------------------
#
# The 8 groups never meet between two shuffles, so each goes through the whole
# iteration while it is in cache, and nothing but the iteration's input and the
# moments is kept for the backward pass, which is written by hand:
#
# With y the depthwise output, h = (y - mean1) / std1 its normalised form, P the
# pointwise matrix and s the first norm's scale, the second norm meets
# z = P (s h + b) and takes its own mean away, so z is (P s / std1) y =: F y here, up
# to a constant per channel, and the first norm's bias b has no gradient at all.
# Let gz be the gradient of z. The second norm makes its sum 0. Then, without another
# pass over the data, the two sums that the first norm's gradient needs are
#     sum(gh) = 0        sum(gh * h) = sum over outputs of (P s) * (gz h^T)
# and gz h^T is the product that the gradient of P needs as well.


def _mapped_eval(x, dw, matrices, bias):
    def group(args):
        index, kernels, matrix, bias = args
        x_group = _shuffled_group(x, index)
        y = mix(matrix.astype(x.dtype), in_memory(shifted_sum(x_group, kernels)))
        return jax.nn.relu(x_group + y + per_channel(bias)).astype(x.dtype)

    kernels = split(by_channel(dw, x.shape[0]), GROUPS)
    indices = jnp.arange(GROUPS)
    return merge(lax.map(group, (indices, kernels, matrices, split(bias, GROUPS))))


@jax.custom_vjp
def _mapped_train(x, weights):
    return _mapped_forward(x, weights)[0]


def _mapped_forward(x, weights):
    def group(args):
        index, w = args
        x_group = _shuffled_group(x, index)
        y = in_memory(shifted_sum(x_group, w.dw))
        dw_moments = batch_moments(y)
        folded = w.pw * (w.dw_scale * rsqrt(dw_moments))
        z = mix(folded.astype(x.dtype), y)
        moments = batch_moments(z)
        out = jax.nn.relu(x_group + normalise(z, w.pw_scale, w.pw_bias, moments))
        mean = moments.mean - folded @ dw_moments.mean + w.pw @ w.dw_bias
        return out, dw_moments, moments, mean

    out = lax.map(group, (jnp.arange(GROUPS), _by_group(weights)))
    out, dw_moments, moments, mean = jax.tree.map(merge, out)
    met = (dw_moments, Moments(mean, moments.variance))
    return (out, met), (x, weights, dw_moments, moments)


def _mapped_backward(residuals, gradients):
    x, weights, dw_moments, moments = residuals
    grad_out, _ = gradients

    def group(args):
        index, w, dw_moments, moments, grad_out = args
        x_group = _shuffled_group(x, index)
        mean = lambda a: jnp.mean(a, axis=(1, 2, 3))
        # Forward once more.
        y = in_memory(shifted_sum(x_group, w.dw))
        dw_rsqrt, pw_rsqrt = rsqrt(dw_moments), rsqrt(moments)
        folded = w.pw * (w.dw_scale * dw_rsqrt)
        z = mix(folded.astype(x.dtype), y)
        z = (z - per_channel(moments.mean)) * per_channel(pw_rsqrt)
        # ReLU and second norm.
        out = x_group + z * per_channel(w.pw_scale) + per_channel(w.pw_bias)
        grad_out = jnp.where(out > 0, grad_out, 0)
        mean_grad, mean_grad_z = mean(grad_out), mean(grad_out * z)
        grad_z = grad_out - per_channel(mean_grad) - z * per_channel(mean_grad_z)
        grad_z = (grad_z * per_channel(w.pw_scale * pw_rsqrt)).astype(x.dtype)
        # Pointwise and first norm.
        # The sum of grad_z is 0, so y need not be centred. Two dimensions each, as with
        # four XLA copies y transposed, and the larger factor first, as in `pointwise`.
        grad_folded = y.reshape(len(y), -1) @ grad_z.reshape(len(grad_z), -1).T
        grad_pw = (grad_folded * (w.dw_scale * dw_rsqrt)[:, None]).T
        grad_dw_scale = jnp.sum(grad_folded * w.pw.T, axis=1) * dw_rsqrt
        along_y = w.dw_scale * jnp.square(dw_rsqrt) * grad_dw_scale / x[0].size
        grad_y = mix(folded.T.astype(x.dtype), grad_z) - per_channel(along_y) * (
            y - per_channel(dw_moments.mean)
        )
        # Depthwise and residual.
        grad_y = grad_y.reshape(x_group.shape[0], 2, *grad_y.shape[1:])
        grad_x, grad_dw = shifted_sum_gradients(x_group, w.dw, grad_y)
        grad_x = split(grad_x + grad_out, x_group.shape[0] // 2)
        return (
            (grad_x[:, 1], grad_x[:, 0]),
            Weights(
                grad_dw,
                grad_pw,
                grad_dw_scale,
                jnp.zeros_like(w.dw_bias),
                mean_grad_z * x[0].size,
                mean_grad * x[0].size,
            ),
        )

    split_groups = lambda tree: jax.tree.map(lambda a: split(a, GROUPS), tree)
    args = split_groups((dw_moments, moments, grad_out))
    out = lax.map(group, (jnp.arange(GROUPS), _by_group(weights), *args))
    halves, grads = out
    grad_x = jnp.concatenate([merge(half) for half in halves])
    grads = Weights(
        by_position(merge(grads.dw)), by_input(grads.pw), *map(merge, grads[2:])
    )
    cast = lambda grad, weight: grad.astype(weight.dtype)
    return grad_x, jax.tree.map(cast, grads, weights)


_mapped_train.defvjp(_mapped_forward, _mapped_backward)


def _shuffled_group(x, index):
    """Group `index` of the channels of `shuffle(x)`."""
    size = x.shape[0] // GROUPS // 2
    return _interleave(
        lax.dynamic_slice_in_dim(split(x, 2), index * size, size, axis=1)
    )


def _interleave(halves):
    # Reversed and transposed: a concatenation took 14 % of a training step more.
    return merge(halves[::-1].swapaxes(0, 1))


def _by_group(weights):
    """`weights` with a leading axis of groups; kernels by channel, matrices."""
    norms = [split(values, GROUPS) for values in weights[2:]]
    dw = split(by_channel(weights.dw, weights.pw.shape[3]), GROUPS)
    return Weights(dw, by_group(weights.pw, GROUPS), *norms)
