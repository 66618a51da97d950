"""Depthwise 3x3 convolution with padding 1."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.blocks import merge, split
from lrunet_jax.ops.conv import convolve
from lrunet_jax.ops.lowerings import choose
from lrunet_jax.ops.materialise import materialise
from lrunet_jax.ops.windows import pad, windows

_DENSE_BLOCK = 128  # channels; the width of a TPU's matrix unit


def depthwise(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, lowering: str | None = None
) -> jax.Array:
    """Convolves each channel with its own M kernels of 3x3, padding 1.

    Args:
      x: (C, H, W, B).
      kernel: (3, 3, 1, C * M), as Flax shapes a depthwise kernel; output channel
        c * M + m reads input channel c.
      stride: 1 or 2, in both directions.
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.

    Returns:
      (C * M, ceil(H / stride), ceil(W / stride), B), in x's dtype.
    """
    return choose(_LOWERINGS, lowering)(x, kernel, stride)


def _xla(x, kernel, stride):
    return convolve(x, kernel, stride, groups=x.shape[0])


def _tpu(x, kernel, stride):
    channels = x.shape[0]
    block = max(n for n in range(1, _DENSE_BLOCK + 1) if channels % n == 0)
    kernels = kernel.reshape(3, 3, channels // block, block, -1)
    eye = jnp.eye(block, dtype=kernel.dtype)
    dense = jnp.einsum("hwgcm,ic->hwigcm", kernels, eye).reshape(3, 3, block, -1)
    return convolve(x, dense, stride, groups=channels // block)


def _cpu(x, kernel, stride):
    return _cpu_by_channel(x, by_channel(kernel, x.shape[0]), stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_by_channel(x, kernels, stride):
    return shifted_sum(x, kernels, stride, lowering="cpu")


def _cpu_forward(x, kernels, stride):
    return shifted_sum(x, kernels, stride, lowering="cpu"), (x, kernels)


def _cpu_backward(stride, residuals, grad):
    x, kernels = residuals
    grad = split(grad, x.shape[0])
    grad_x, grad_kernels = shifted_sum_gradients(
        x, kernels, grad, stride, lowering="cpu"
    )
    return grad_x, grad_kernels.astype(kernels.dtype)


_cpu_by_channel.defvjp(_cpu_forward, _cpu_backward)

_LOWERINGS: dict[str, Callable[..., jax.Array]] = {
    "cpu": _cpu,
    "xla": _xla,
    "tpu": _tpu,
}


# --- The shifted sum -------------------------------------------------------------


def by_channel(kernel: jax.Array, channels: int) -> jax.Array:
    """Reshapes (3, 3, 1, C * M) to (C, M, 3, 3), which can be sliced by channel."""
    return jnp.moveaxis(kernel.reshape(3, 3, channels, -1), (0, 1), (2, 3))


def by_position(kernels: jax.Array) -> jax.Array:
    """Undoes `by_channel`."""
    return jnp.moveaxis(kernels, (2, 3), (0, 1)).reshape(3, 3, 1, -1)


def shifted_sum(
    x: jax.Array, kernels: jax.Array, stride: int = 1, *, lowering: str
) -> jax.Array:
    """Convolves x (C, H, W, B) with kernels (C, M, 3, 3) to (C * M, H, W, B)."""
    padded = materialise(pad(x[:, None]), lowering=lowering)
    return merge(_weighted_sum(windows(padded, stride), kernels)).astype(x.dtype)


def shifted_sum_gradients(
    x: jax.Array,
    kernels: jax.Array,
    grad: jax.Array,
    stride: int = 1,
    *,
    lowering: str,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of `shifted_sum` to x and to kernels, in their shapes.

    Args:
      x: (C, H, W, B).
      kernels: (C, M, 3, 3).
      grad: (C, M, H / stride, W / stride, B).
      stride: 1 or 2.
      lowering: in which operands are stored, or not, as `materialise` does.
    """
    grad_x = _x_gradient(x, kernels, grad, stride, lowering)
    return grad_x, _kernel_gradient(x, grad, stride, lowering)


def _x_gradient(x, kernels, grad, stride, lowering):
    # Pixel p of x meets pixel q of grad at kernel row i where p = q * stride + i - 1:
    # grad spread out by the stride is convolved with the flipped kernels.
    low_high_interior = [
        (1, size - (out - 1) * stride, stride - 1)
        for size, out in zip(x.shape[1:3], grad.shape[2:4], strict=True)
    ]
    none = (0, 0, 0)
    zero = jnp.zeros((), grad.dtype)
    spread = lax.pad(grad, zero, [none, none, *low_high_interior, none])
    spread = materialise(spread, lowering=lowering)
    # Each plane is sliced out first: an integer among slices is a gather, and made
    # this sum four times slower.
    planes = [spread[:, m] for m in range(kernels.shape[1])]
    flipped = kernels[:, :, ::-1, ::-1]
    sums = [_weighted_sum(windows(p), flipped[:, m]) for m, p in enumerate(planes)]
    return functools.reduce(operator.add, sums).astype(x.dtype)


def _kernel_gradient(x, grad, stride, lowering):
    # All nine sums in one pass: separate reductions take seven times as long.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    grad = grad.astype(dtype)
    padded = materialise(pad(x.astype(dtype)[:, None]), lowering=lowering)
    views = windows(padded, stride)
    grad = materialise(grad, lowering=lowering)
    zeros = (jnp.zeros((), dtype),) * 9
    sums = lax.reduce(tuple(view * grad for view in views), zeros, _add, (2, 3, 4))
    return jnp.stack(sums, -1).reshape(*grad.shape[:2], 3, 3)


def _add(a, b):
    return tuple(p + q for p, q in zip(a, b, strict=True))


def _weighted_sum(views, kernels):
    """Sums nine views (..., H, W, B), each times its place in kernels (..., 3, 3)."""
    places = ((i, j) for i in range(3) for j in range(3))
    products = (
        view * kernels[..., i, j][..., None, None, None]
        for view, (i, j) in zip(views, places, strict=True)
    )
    return functools.reduce(operator.add, products)
