"""Batch normalisation of (C, H, W, B) arrays, as PyTorch computes it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from lrunet_jax.ops.batch_axis import (
    BatchAxis,
    mean_over_batch,
    resolve_axis,
    sum_over_batch,
    whole_count,
)
from lrunet_jax.ops.lowerings import resolve
from lrunet_jax.ops.materialise import materialise

EPSILON = 1e-5  # as the original
KEPT = "moments"  # the name by which `jax.checkpoint` keeps the moments of a batch


class Moments(NamedTuple):
    """Mean and variance of each channel, (C,), in at least float32."""

    mean: jax.Array
    variance: jax.Array


class Norm(NamedTuple):
    """The parameters of a batch norm, (C,) each.

    Attributes:
      scale: that normalised values are multiplied by.
      bias: that is added to them then.
      running: the moments to normalise by; None for those of the batch.
    """

    scale: jax.Array
    bias: jax.Array
    running: Moments | None = None


def batch_norm(
    x: jax.Array, norm: Norm, *, lowering: str | None = None
) -> tuple[jax.Array, Moments | None]:
    """Batch normalisation: (x - mean) / sqrt(variance + 1e-5) * scale + bias.

    Args:
      x: (C, H, W, B).
      norm: scale, bias and moments.
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.

    Returns:
      The output, in x's shape and dtype, and None if `norm.running` was given; else
      the batch's mean and unbiased variance, which running statistics take and through
      which no gradient flows. The output takes the biased variance, as PyTorch's.
    """
    if norm.running is not None:
        return normalise(x, norm.scale, norm.bias, norm.running), None
    return normalise_by_batch(x, norm, resolve(lowering), resolve_axis())


def normalise_by_batch(
    x: jax.Array, norm: Norm, lowering: str, axis: BatchAxis | None
) -> tuple[jax.Array, Moments]:
    """Does what `batch_norm` does with the batch's own moments.

    In a given lowering, and over the devices of an axis.
    """
    x = materialise(x, lowering=lowering)
    out, moments = _batch_norm(x, norm.scale, norm.bias, lowering, axis)
    return out, unbiased(moments, whole_count(x[0].size, axis))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(x, scale, bias, lowering, axis):
    return _forward(x, scale, bias, lowering, axis)[0]


def _forward(x, scale, bias, lowering, axis):
    moments = batch_moments(x, axis)
    return (normalise(x, scale, bias, moments), moments), (x, scale, bias, moments)


def _backward(lowering, axis, residuals, gradients):
    # By hand, as only x is kept so; left to JAX, x - mean is kept beside it.
    x, scale, bias, moments = residuals
    grad = gradients[0].astype(moments.mean.dtype)
    # Together, or `centred` is computed at the end of the forward pass and kept.
    x, grad = materialise((x, grad), lowering=lowering)
    centred, factor = x - per_channel(moments.mean), rsqrt(moments.variance)
    own = grad_bias, along = channel_sum(grad), channel_sum(grad * centred)
    (total, total_along), count = sum_over_batch(own, x[0].size, axis)
    # Divided for each value: a channel's means would be kernels of their own on TPU.
    common = centred * per_channel(total_along * jnp.square(factor))
    grad_x = grad - (per_channel(total) + common) / count
    grad_x = grad_x * per_channel(scale * factor)
    grad_scale = along * factor
    grads = grad_x, grad_scale, grad_bias
    return jax.tree.map(lambda g, a: g.astype(a.dtype), grads, (x, scale, bias))


_batch_norm.defvjp(_forward, _backward)


def batch_moments(x: jax.Array, axis: BatchAxis | None) -> Moments:
    """The moments of x (C, H, W, B) over all but the channels; biased variance.

    Those of the whole batch, and kept for the backward pass where x is computed again:
    two reductions over the devices of `axis`.
    """
    # Two passes: in float32, E[x^2] - E[x]^2 loses everything where the mean is a
    # thousand standard deviations.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = mean_over_batch(channel_sum(x), x[0].size, axis)
    centred = x - per_channel(mean)
    variance = mean_over_batch(channel_sum(jnp.square(centred)), x[0].size, axis)
    return checkpoint_name(Moments(mean, variance), KEPT)


def channel_sum(x: jax.Array) -> jax.Array:
    """The sum of each channel of x (C, H, W, B), (C,)."""
    return jnp.sum(x, axis=(1, 2, 3))


def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, moments: Moments
) -> jax.Array:
    """Computes (x - mean) / sqrt(variance + EPSILON) * scale + bias, in x's dtype."""
    centred = x - per_channel(moments.mean)
    factor = per_channel(scale * rsqrt(moments.variance))
    return (centred * factor + per_channel(bias)).astype(x.dtype)


def unbiased(moments: Moments, count: int) -> Moments:
    """Makes the variance unbiased, for `count` values per channel; stops gradients."""
    factor = count / max(count - 1, 1)
    return lax.stop_gradient(moments._replace(variance=moments.variance * factor))


def rsqrt(variance: jax.Array) -> jax.Array:
    """Computes 1 / sqrt(variance + EPSILON), in its shape."""
    return lax.rsqrt(variance + EPSILON)


def per_channel(values: jax.Array) -> jax.Array:
    """Reshapes (C,) to (C, 1, 1, 1)."""
    return values[:, None, None, None]
