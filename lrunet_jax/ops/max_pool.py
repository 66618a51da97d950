"""3x3 max pooling with stride 2 and padding 1."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.lowerings import choose


def max_pool(x: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """The maximum of each 3x3 window, stride 2, padding 1.

    The gradient goes to the first maximum of a window, row by row, as in PyTorch.

    Args:
      x: (C, H, W, B).
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.

    Returns:
      (C, ceil(H / 2), ceil(W / 2), B), in x's dtype.
    """
    return choose(_LOWERINGS, lowering)(x)


def _xla(x):
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )


def _cpu(x):
    # Columns, then rows: six comparisons in place of nine, and the first maximum of
    # the first of the greatest rows is the first of the window. The gradient of
    # `reduce_window` takes ten times as long.
    return _pool_axis(_pool_axis(x, 2), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool_axis(x, axis):
    return functools.reduce(jnp.maximum, _views(x, axis))


def _pool_axis_forward(x, axis):
    out = _pool_axis(x, axis)
    return out, (x, out)


def _pool_axis_backward(axis, residuals, grad):
    x, out = residuals
    size = x.shape[axis]
    zero = jnp.zeros((), grad.dtype)
    taken = jnp.zeros(out.shape, bool)
    total = jnp.zeros_like(x)
    for shift, view in enumerate(_views(x, axis)):
        first = (view == out) & ~taken
        taken |= first
        # Output q reads the padded input at 2 q + shift; one line is cut off at the
        # front, and what is left over at the end.
        padding = [(0, 0, 0)] * x.ndim
        padding[axis] = (shift - 1, size - shift - 2 * (out.shape[axis] - 1), 1)
        total += lax.pad(jnp.where(first, grad, zero), zero, padding)
    return (total,)


_pool_axis.defvjp(_pool_axis_forward, _pool_axis_backward)


def _views(x, axis):
    """The three shifted views of x along `axis`, stride 2, padded by one."""
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 1)
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)
    return [
        lax.slice_in_dim(padded, shift, shift + size, 2, axis=axis)
        for shift in range(3)
    ]


_LOWERINGS = {"cpu": _cpu, "xla": _xla}
