"""Batch normalisation of (C, H, W, B) arrays, as PyTorch computes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # as the original


class Moments(NamedTuple):
    """Mean and biased variance of each channel, (C,), in at least float32."""

    mean: jax.Array
    variance: jax.Array


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Moments]:
    """Normalises x (C, H, W, B) by its own moments, then scales and shifts it."""
    moments = batch_moments(x)
    return normalise(x, scale, bias, moments), moments


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
