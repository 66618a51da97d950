"""The reuse block's iteration for CPU: one group of channels at a time.

Between two iterations x lies as in `reuse_xla`. The groups do not mix between two
shuffles, so each goes through the whole iteration while it is in cache, and nothing but
the iteration's input and the moments is kept for the backward pass, which is written by
hand. For one group, with pixels as columns:

    y    the output of the depthwise convolution
    h    (y - mean1) / std1, its normalised form
    s, b the first norm's scale and bias
    P    the pointwise matrix
    z    P (s h + b), the input of the second norm
    gh, gz the gradients of h and z

The second norm subtracts the mean of its input. So b has no gradient, z may be
computed as F y with F = P s / std1, up to a constant per channel, and gz sums to 0
over the pixels. The gradient of the first norm needs two sums over the pixels, which
then cost no pass over the data:

    sum(gh) = 0        sum(gh * h) = sum over outputs of (P s) * (gz h^T)

gz h^T is the product that the gradient of P needs as well.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops import reuse_xla
from lrunet_jax.ops.batch_axis import BatchAxis, mean_over_batch, whole_count
from lrunet_jax.ops.batch_norm import (
    Moments,
    Norm,
    batch_moments,
    channel_sum,
    normalise,
    per_channel,
    rsqrt,
    unbiased,
)
from lrunet_jax.ops.blocks import merge, split
from lrunet_jax.ops.channel_shuffle import interleave
from lrunet_jax.ops.depthwise import (
    by_channel,
    by_position,
    shifted_sum,
    shifted_sum_gradients,
)
from lrunet_jax.ops.materialise import in_memory
from lrunet_jax.ops.pointwise import by_group, by_input, mix
from lrunet_jax.ops.relu import relu
from lrunet_jax.ops.reuse_weights import ReuseMoments, ReuseWeights, fold
from lrunet_jax.ops.reuse_xla import begin, end

__all__ = ["begin", "end", "iterate"]


def iterate(
    x: jax.Array, weights: ReuseWeights, axis: BatchAxis | None
) -> tuple[jax.Array, ReuseMoments | None]:
    """Does what `ops.reuse` does, to x (C, H, W, B)."""
    if x.shape[0] % (2 * weights.groups):
        # A group has not as many channels of the first half as of the second.
        return reuse_xla.iterate(x, weights, axis, "cpu")
    if weights.dw_norm.running is not None:
        return _folded_iteration(x, weights), None
    out, moments = _iteration(x, weights, axis)
    count = whole_count(x[0].size, axis)
    return out, ReuseMoments(
        dw=unbiased(moments.dw, count), pw=unbiased(moments.pw, count)
    )


def _folded_iteration(x, weights):
    groups = weights.groups
    matrices, bias = fold(weights)

    def group(args):
        index, kernels, matrix, bias = args
        x_group = _shuffled_group(x, index, groups)
        y = mix(
            matrix.astype(x.dtype),
            in_memory(shifted_sum(x_group, kernels, lowering="cpu")),
        )
        out = relu(x_group + y + per_channel(bias), lowering="cpu")
        return out.astype(x.dtype)

    kernels = split(by_channel(weights.dw, x.shape[0]), groups)
    args = (jnp.arange(groups), kernels, matrices, split(bias, groups))
    return merge(lax.map(group, args))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _iteration(x, weights, axis):
    return _forward(x, weights, axis)[0]


def _forward(x, weights, axis):
    groups = weights.groups

    def group(args):
        index, w = args
        x_group = _shuffled_group(x, index, groups)
        y = in_memory(shifted_sum(x_group, w.dw, lowering="cpu"))
        dw_moments = batch_moments(y, axis)
        folded = w.pw * (w.dw_norm.scale * rsqrt(dw_moments.variance))
        z = mix(folded.astype(x.dtype), y)
        moments = batch_moments(z, axis)
        # The first norm's bias moves the mean of z alone, which the second norm
        # subtracts: z leaves it out. As 0 times that, a NaN of it reaches the output.
        shift = w.pw @ w.dw_norm.bias
        pw_bias = w.pw_norm.bias + 0 * shift
        z = normalise(z, w.pw_norm.scale, pw_bias, moments)
        out = relu(x_group + z, lowering="cpu")
        mean = moments.mean - folded @ dw_moments.mean + shift
        return out, dw_moments, moments, mean

    out = lax.map(group, (jnp.arange(groups), _by_group(weights)))
    out, dw_moments, moments, mean = jax.tree.map(merge, out)
    met = ReuseMoments(dw=dw_moments, pw=Moments(mean, moments.variance))
    return (out, met), (x, weights, dw_moments, moments)


def _backward(axis, residuals, gradients):
    x, weights, dw_moments, moments = residuals
    grad_out, _ = gradients
    groups = weights.groups

    def group(args):
        index, w, dw_moments, moments, grad_out = args
        x_group = _shuffled_group(x, index, groups)
        # Forward once more.
        y = in_memory(shifted_sum(x_group, w.dw, lowering="cpu"))
        dw_rsqrt, pw_rsqrt = rsqrt(dw_moments.variance), rsqrt(moments.variance)
        folded = w.pw * (w.dw_norm.scale * dw_rsqrt)
        z = mix(folded.astype(x.dtype), y)
        z = (z - per_channel(moments.mean)) * per_channel(pw_rsqrt)
        # ReLU and second norm.
        out = x_group + z * per_channel(w.pw_norm.scale) + per_channel(w.pw_norm.bias)
        grad_out = jnp.where(out > 0, grad_out, 0)
        count = x[0].size
        own = channel_sum(grad_out), channel_sum(grad_out * z)
        mean_grad, mean_grad_z = mean_over_batch(own, count, axis)
        grad_z = grad_out - per_channel(mean_grad) - z * per_channel(mean_grad_z)
        grad_z = (grad_z * per_channel(w.pw_norm.scale * pw_rsqrt)).astype(x.dtype)
        # Pointwise and first norm.
        # The sum of grad_z, over all devices, is 0, so y need not be centred. Two
        # dimensions each, as with four XLA copies y transposed, and the larger factor
        # first, as in `pointwise`.
        grad_folded = lax.collapse(y, 1) @ lax.collapse(grad_z, 1).T
        grad_pw = (grad_folded * (w.dw_norm.scale * dw_rsqrt)[:, None]).T
        grad_dw_scale = jnp.sum(grad_folded * w.pw.T, axis=1) * dw_rsqrt
        along_y = mean_over_batch(grad_dw_scale, count, axis)
        along_y *= w.dw_norm.scale * jnp.square(dw_rsqrt)
        grad_y = mix(folded.T.astype(x.dtype), grad_z) - per_channel(along_y) * (
            y - per_channel(dw_moments.mean)
        )
        # Depthwise and residual.
        grad_y = grad_y.reshape(x_group.shape[0], 2, *grad_y.shape[1:])
        grad_x, grad_dw = shifted_sum_gradients(x_group, w.dw, grad_y, lowering="cpu")
        grad_x = split(grad_x + grad_out, x_group.shape[0] // 2)
        return (
            (grad_x[:, 1], grad_x[:, 0]),
            ReuseWeights(
                dw=grad_dw,
                pw=grad_pw,
                dw_norm=Norm(scale=grad_dw_scale, bias=jnp.zeros_like(w.dw_norm.bias)),
                pw_norm=Norm(scale=own[1], bias=own[0]),
            ),
        )

    split_groups = lambda tree: jax.tree.map(lambda a: split(a, groups), tree)
    args = split_groups((dw_moments, moments, grad_out))
    out = lax.map(group, (jnp.arange(groups), _by_group(weights), *args))
    halves, grads = out
    grad_x = jnp.concatenate([merge(half) for half in halves])
    grads = ReuseWeights(
        dw=by_position(merge(grads.dw)),
        pw=by_input(grads.pw),
        dw_norm=jax.tree.map(merge, grads.dw_norm),
        pw_norm=jax.tree.map(merge, grads.pw_norm),
    )
    cast = lambda grad, weight: grad.astype(weight.dtype)
    return grad_x, jax.tree.map(cast, grads, weights)


_iteration.defvjp(_forward, _backward)


def _shuffled_group(x, index, groups):
    """Group `index` of the channels of `shuffle(x)`."""
    size = x.shape[0] // groups // 2
    halves = lax.dynamic_slice_in_dim(split(x, 2), index * size, size, axis=1)
    return interleave(halves)


def _by_group(weights):
    """`weights` with a leading axis of groups; kernels by channel, matrices."""
    groups = weights.groups
    split_all = lambda norm: jax.tree.map(lambda a: split(a, groups), norm)
    return ReuseWeights(
        dw=split(by_channel(weights.dw, weights.pw.shape[3]), groups),
        pw=by_group(weights.pw, groups),
        dw_norm=split_all(weights.dw_norm),
        pw_norm=split_all(weights.pw_norm),
    )
