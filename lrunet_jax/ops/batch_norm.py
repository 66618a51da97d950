"""Batch normalisation of (C, H, W, B) arrays, as PyTorch computes it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.fence import fenced
from lrunet_jax.ops.lowering import resolve

EPSILON = 1e-5  # as the original

Activation = Callable[[jax.Array], jax.Array]


class Moments(NamedTuple):
    """Mean and biased variance of each channel, (C,), in at least float32."""

    mean: jax.Array
    variance: jax.Array


def identity(x: jax.Array) -> jax.Array:
    """No activation."""
    return x


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None = None,
    *,
    activation: Activation = identity,
    lowering: str = "auto",
) -> tuple[jax.Array, Moments]:
    """Normalises x by its own moments, scales, shifts, adds a shortcut, activates.

    Args:
      x: (C, H, W, B).
      scale: (C,).
      bias: (C,).
      shortcut: (C, H, W, B), if there is one.
      activation: which, and whose derivative, are the same of its output as of its
        input: `identity`, `nn.relu`, `nn.relu6`.
      lowering: `auto` or one of `LOWERINGS`.

    Returns:
      (C, H, W, B) in x's dtype, and the moments, which carry no gradient.
    """
    if resolve(lowering) == "mapped":
        return _mapped(x, scale, bias, shortcut, activation)
    out, moments = _batch_norm(x, scale, bias)
    return _activate(out, shortcut, activation), moments


def frozen_batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    moments: Moments,
    shortcut: jax.Array | None = None,
    *,
    activation: Activation = identity,
    lowering: str = "auto",
) -> jax.Array:
    """`batch_norm` by given moments."""
    apply = _fenced_apply if resolve(lowering) == "mapped" else _apply
    return apply(x, scale, bias, moments, shortcut, activation)


def _apply(x, scale, bias, moments, shortcut, activation):
    return _activate(normalise(x, scale, bias, moments), shortcut, activation)


_fenced_apply = fenced(_apply, static_argnums=(5,))


def _activate(x, shortcut, activation):
    return activation(x if shortcut is None else x + shortcut)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _mapped(x, scale, bias, shortcut, activation):
    return _mapped_forward(x, scale, bias, shortcut, activation)[0]


def _mapped_forward(x, scale, bias, shortcut, activation):
    moments = batch_moments(x)
    out = _fenced_apply(x, scale, bias, moments, shortcut, activation)
    return (out, moments), (x, scale, bias, moments, shortcut, out)


def _mapped_backward(activation, residuals, gradients):
    *residuals, shortcut, out = residuals
    return _fenced_gradients(
        *residuals, out, gradients[0], shortcut is not None, activation
    )


def _gradients(x, scale, bias, moments, out, grad, has_shortcut, activation):
    (grad,) = jax.vjp(activation, out)[1](grad)
    grads = _batch_norm_backward((x, scale, bias, moments), (grad,))
    return *grads, grad if has_shortcut else None


_fenced_gradients = fenced(_gradients, static_argnums=(6, 7))

_mapped.defvjp(_mapped_forward, _mapped_backward)


@jax.custom_vjp
def _batch_norm(x, scale, bias):
    return _batch_norm_forward(x, scale, bias)[0]


def _batch_norm_forward(x, scale, bias):
    moments = batch_moments(x)
    return (normalise(x, scale, bias, moments), moments), (x, scale, bias, moments)


def _batch_norm_backward(residuals, gradients):
    # By hand, as only x is kept so; left to JAX, x - mean is kept beside it.
    x, scale, bias, moments = residuals
    grad = gradients[0].astype(moments.mean.dtype)
    normal = (x - per_channel(moments.mean)) * per_channel(rsqrt(moments))
    mean_grad = jnp.mean(grad, axis=(1, 2, 3))
    mean_grad_normal = jnp.mean(grad * normal, axis=(1, 2, 3))
    grad_x = grad - per_channel(mean_grad) - normal * per_channel(mean_grad_normal)
    grad_x = grad_x * per_channel(scale * rsqrt(moments))
    grads = grad_x, mean_grad_normal * x[0].size, mean_grad * x[0].size
    return jax.tree.map(lambda g, a: g.astype(a.dtype), grads, (x, scale, bias))


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def batch_moments(x: jax.Array) -> Moments:
    """The moments of x (C, H, W, B) over everything but the channels."""
    # Two passes: in float32, E[x^2] - E[x]^2 loses everything where the mean is a
    # thousand standard deviations.
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=(1, 2, 3))
    variance = jnp.mean(jnp.square(x - per_channel(mean)), axis=(1, 2, 3))
    return Moments(mean, variance)


def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, moments: Moments
) -> jax.Array:
    """(x - mean) / sqrt(variance + EPSILON) * scale + bias, in x's dtype."""
    centred = x - per_channel(moments.mean)
    factor = per_channel(scale * rsqrt(moments))
    return (centred * factor + per_channel(bias)).astype(x.dtype)


def rsqrt(moments: Moments) -> jax.Array:
    """1 / sqrt(variance + EPSILON), (C,)."""
    return lax.rsqrt(moments.variance + EPSILON)


def per_channel(values: jax.Array) -> jax.Array:
    """(C,) -> (C, 1, 1, 1)."""
    return values[:, None, None, None]
