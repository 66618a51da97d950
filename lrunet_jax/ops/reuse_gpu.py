"""The reuse block's iteration for GPU: few passes over whole arrays.

A step is bound by memory there, and what costs is every array that is written and read.
Between two iterations x lies as in `reuse_xla`. Nothing but the iteration's input, the
moments and some matrices of weights is kept for the backward pass, which is written by
hand. A ReLU leaves its gradient to what reads its output, the next iteration or `end`:
there that output is at hand, and is not computed again. For one group, with pixels as
columns:

    y     the output of the depthwise convolution, less its mean over the batch
    S     the mean of y y^T; the first norm's variance is its diagonal
    s, t  the scales of the two norms
    F     P s / std1, with the pointwise matrix P: the second norm's input is F y, up
          to a constant per channel; that norm's variance is the diagonal of F S F^T
    N     F / std2: the output is ReLU(x + t N y + bias)

So all moments come from the mean of x and one product, before the pointwise convolution
is computed; that, the residual and the ReLU are one pass. Devices that share a batch
average the mean and both variances, not S. Backward, with g the gradient behind the
ReLU, G the mean of g y^T and a = rowsum(N * G), which is the mean of g times the second
norm's normalised values:

    grad t = sum of a                     grad F = sum of t / std2 (G - a N S)
    grad s = colsum(P * grad F) / std1    grad P = grad F * s / std1
    grad y = (t N)^T (g - mean g) - ((t N)^T a N + diag(s grad s / std1^2)) y

Of those, devices average mean g and a, then grad s; the rest is linear in S and G.
The first norm's bias cancels in the second norm, and has no gradient.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops import reuse_xla
from lrunet_jax.ops.batch_axis import BatchAxis, mean_over_batch, whole_count
from lrunet_jax.ops.batch_norm import (
    Moments,
    Norm,
    channel_sum,
    per_channel,
    rsqrt,
    unbiased,
)
from lrunet_jax.ops.blocks import merge, split
from lrunet_jax.ops.channel_shuffle import shuffle, unshuffle
from lrunet_jax.ops.depthwise import (
    by_channel,
    by_position,
    shifted_sum,
    shifted_sum_gradients,
)
from lrunet_jax.ops.pointwise import by_group, by_input
from lrunet_jax.ops.relu import relu
from lrunet_jax.ops.reuse_weights import ReuseMoments, ReuseWeights, fold


class Carry(NamedTuple):
    """The state of a block between two iterations.

    Attributes:
      x: (C, H, W, B), as in `reuse_xla`.
      floor: (C,), for each channel the same: where x is not above it, the gradient of
        x is 0. 0 behind a ReLU, -inf for a block's input.
    """

    x: jax.Array
    floor: jax.Array


def begin(x: jax.Array) -> Carry:
    """Undoes the shuffle that the first iteration begins with."""
    return Carry(reuse_xla.begin(x), jnp.full(x.shape[0], -jnp.inf, jnp.float32))


def iterate(
    carry: Carry, weights: ReuseWeights, axis: BatchAxis | None
) -> tuple[Carry, ReuseMoments | None]:
    """Does what `ops.reuse` does, to what `begin` returned."""
    after_relu = jnp.zeros_like(carry.floor)
    if weights.dw_norm.running is not None:
        return Carry(_folded_iteration(carry.x, weights), after_relu), None
    # Zeros from `_backward` would be written in each iteration.
    dw_bias = lax.stop_gradient(weights.dw_norm.bias)
    weights = weights._replace(dw_norm=weights.dw_norm._replace(bias=dw_bias))
    out, moments = _iteration(*carry, weights, axis)
    count = whole_count(out[0].size, axis)
    return Carry(out, after_relu), ReuseMoments(
        dw=unbiased(moments.dw, count), pw=unbiased(moments.pw, count)
    )


def end(carry: Carry) -> jax.Array:
    """Returns x, whose last iteration is followed by no shuffle."""
    return _after_relu(carry.x)


@jax.custom_jvp
def _after_relu(x):
    return x


_after_relu.defjvps(lambda tangent, out, x: jnp.where(x > 0, tangent, 0))


def _folded_iteration(x, weights):
    matrices, bias = fold(weights)
    x = _shuffled(x)
    y = _pixels(_depthwise(x, weights), weights.groups)
    out = relu(_residual_sum(x, y, matrices, bias), lowering="gpu")
    return out.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _iteration(x, floor, weights, axis):
    return _forward(x, floor, weights, axis)[0]


class _Norms(NamedTuple):
    """Both norms by group, as the module explains."""

    dw_variance: jax.Array  # (groups, 2C / groups)
    pw_variance: jax.Array  # (groups, C / groups)
    normal: jax.Array  # N, (groups, C / groups, 2C / groups)
    normal_covariance: jax.Array  # N S, in N's shape, with this device's S


def _pack(floor, mean, norms):
    """One array of what is kept, as each is a kernel in each iteration: 5 were more.

    It lies by group and output channel.
    """
    arrays = [floor.astype(mean.dtype), mean, *norms]
    by_output = (*norms.pw_variance.shape, -1)
    return jnp.concatenate([array.reshape(by_output) for array in arrays], axis=2)


def _unpack(packed):
    groups, outputs, _ = packed.shape
    inputs = 2 * outputs
    ends = itertools.accumulate([1, 2, 2, 1, inputs])
    floor, mean, dw, pw, normal, covariance = jnp.split(packed, [*ends], axis=2)
    dw, pw = dw.reshape(groups, inputs), pw[..., 0]
    return floor.ravel(), mean.ravel(), _Norms(dw, pw, normal, covariance)


def _norms(weights, covariance, axis):
    own = jnp.diagonal(covariance, axis1=1, axis2=2)
    dw_variance = mean_over_batch(own, 1, axis)
    dw_scale = split(weights.dw_norm.scale, weights.groups)
    dw_factor = dw_scale * rsqrt(dw_variance)
    folded = by_group(weights.pw, weights.groups) * dw_factor[:, None]
    # Sums, not products: those would be kernels of their own. Over the last axis: S
    # is symmetric, and over another the parts that XLA adds up to S are read twice.
    product = jnp.sum(folded[:, :, None] * covariance[:, None], axis=3)
    pw_variance = mean_over_batch(jnp.sum(folded * product, axis=2), 1, axis)
    pw_rsqrt = rsqrt(pw_variance)[..., None]
    return _Norms(dw_variance, pw_variance, folded * pw_rsqrt, product * pw_rsqrt)


def _forward(x, floor, weights, axis):
    groups = weights.groups
    x = _shuffled(x)
    # The convolution is linear: the mean of its outputs is that of the mean image.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    image = jnp.mean(x.astype(dtype), axis=3, keepdims=True)
    pixels = image.shape[1] * image.shape[2]
    mean = mean_over_batch(channel_sum(_depthwise(image, weights)), pixels, axis)
    y = _centred(x, weights, mean)
    # On GPU a product in float32 is rounded by default; variances of `xla` are not.
    covariance = _mean_product("gip,gjp->gij", y, y, lax.Precision.HIGHEST)
    norms = _norms(weights, covariance, axis)
    shift = jnp.einsum(
        "goi,gi->go",
        by_group(weights.pw, groups),
        split(weights.dw_norm.bias, groups),
    )
    # As 0 times the shift, a NaN of the first norm's bias reaches the output.
    pw_bias = weights.pw_norm.bias + 0 * merge(shift)
    out = _residual_sum(x, y, _scaled(norms, weights), pw_bias)
    out = relu(out, lowering="gpu")
    moments = ReuseMoments(
        dw=Moments(mean, merge(norms.dw_variance)),
        pw=Moments(merge(shift), merge(norms.pw_variance)),
    )
    residuals = x, weights, _pack(floor, mean, norms)
    return (out.reshape(x.shape), moments), residuals


def _backward(axis, residuals, gradients):
    x, weights, packed = residuals
    floor, mean, norms = _unpack(packed)
    grad_out, _ = gradients
    groups, count = weights.groups, x[0].size
    dtype = mean.dtype
    y = _centred(x, weights, mean)
    scaled = _scaled(norms, weights)
    grad, outputs = _pixels(grad_out, groups), scaled.shape[1]
    # Stored one below the other, one product makes the gradient of y, and grad_out is
    # overwritten; a part of them would be copied for a product, so the first one here
    # also has grad grad^T, which is cut off. 0.9 GB a step less.
    both = lax.optimization_barrier(jnp.concatenate([grad, y], axis=1))
    mean_grad_y = _mean_product("gop,gip->goi", grad, both)[:, :, outputs:]
    own = (
        jnp.mean(grad.astype(dtype), axis=2),
        jnp.sum(norms.normal * mean_grad_y, axis=2),
    )
    mean_grad, mean_grad_z = mean_over_batch(own, 1, axis)
    # Weights; their gradients are means over this device's pixels here.
    dw_rsqrt = rsqrt(norms.dw_variance)
    dw_factor = split(weights.dw_norm.scale, groups) * dw_rsqrt
    pw_rsqrt = rsqrt(norms.pw_variance)
    pw_factor = split(weights.pw_norm.scale, groups) * pw_rsqrt
    grad_folded = mean_grad_y - mean_grad_z[..., None] * norms.normal_covariance
    grad_folded = pw_factor[..., None] * grad_folded
    grad_pw = grad_folded * dw_factor[:, None]
    products = grad_folded * by_group(weights.pw, groups)
    grad_dw_scale = jnp.sum(products, axis=1) * dw_rsqrt
    # Pointwise and both norms.
    along_y = dw_factor * dw_rsqrt * mean_over_batch(grad_dw_scale, 1, axis)
    along_z = scaled * mean_grad_z[..., None]
    matrices = jnp.sum(along_z[..., None] * norms.normal[:, :, None], axis=1)
    matrices += along_y[..., None] * jnp.eye(along_y.shape[1], dtype=dtype)
    # What is subtracted must be the mean of what it is subtracted from, exactly: else,
    # in bfloat16, the kernel's gradient takes up the mean of x.
    rounded = scaled.astype(x.dtype).astype(dtype)
    constant = jnp.sum(rounded * mean_grad[..., None], axis=1)
    matrices = jnp.concatenate([jnp.swapaxes(scaled, 1, 2), -matrices], axis=2)
    grad_y = _mix(matrices, both)
    grad_y = grad_y.astype(dtype) - constant[..., None]
    # Depthwise and residual.
    kernels = by_channel(weights.dw, x.shape[0])
    grad_y = grad_y.reshape(x.shape[0], 2, *x.shape[1:])
    grad_x, grad_dw = shifted_sum_gradients(x, kernels, grad_y, lowering="gpu")
    grad = both[:, :outputs].reshape(x.shape)
    grad_x = jnp.where(x > per_channel(floor), grad_x + grad, 0)
    dw_bias = jnp.zeros_like(weights.dw_norm.bias)
    grads = ReuseWeights(
        dw=by_position(grad_dw),
        pw=by_input(grad_pw) * count,
        dw_norm=Norm(scale=merge(grad_dw_scale) * count, bias=dw_bias),
        pw_norm=Norm(scale=merge(own[1]) * count, bias=merge(own[0]) * count),
    )
    cast = lambda grad, weight: grad.astype(weight.dtype)
    return unshuffle(grad_x), None, jax.tree.map(cast, grads, weights)


_iteration.defvjp(_forward, _backward)


def _shuffled(x):
    # Stored once: the kernel of a product can't shuffle what it adds, and x, no longer
    # read, is overwritten by the next. Without, 14.0 GB a step in place of 13.4.
    return lax.optimization_barrier(shuffle(x))


def _depthwise(x, weights):
    return shifted_sum(x, by_channel(weights.dw, x.shape[0]), lowering="gpu")


def _centred(x, weights, mean):
    """The depthwise output less its mean, (groups, 2C / groups, pixels)."""
    y = _depthwise(x.astype(mean.dtype), weights) - per_channel(mean)
    return _pixels(y.astype(x.dtype), weights.groups)


def _scaled(norms, weights):
    return norms.normal * split(weights.pw_norm.scale, weights.groups)[..., None]


def _residual_sum(x, y, matrices, bias):
    """One kernel: x + matrices y + bias, (groups, C / groups, pixels), in x's dtype."""
    groups = matrices.shape[0]
    # A bias that is yet to be sliced or rounded keeps the sum out of that kernel, 0.6
    # GB a step.
    bias = lax.optimization_barrier(split(bias, groups).astype(x.dtype))
    return _mix(matrices, y) + _pixels(x, groups) + bias[..., None]


def _mix(matrices, x):
    return jnp.einsum("goi,gip->gop", matrices.astype(x.dtype), x)


def _mean_product(subscripts, a, b, precision=None):
    """A product over the pixels, divided by their number, in at least float32."""
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    total = jnp.einsum(
        subscripts, a, b, precision=precision, preferred_element_type=dtype
    )
    return total / a.shape[2]


def _pixels(x, groups):
    """Reshapes (C, H, W, B) to (groups, C / groups, H * W * B)."""
    # One axis: with more, XLA transposes the factors of a product over them.
    return lax.collapse(split(x, groups), 2)
