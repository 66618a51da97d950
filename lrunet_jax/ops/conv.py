"""Dense 3x3 convolution with padding 1: the networks' first layer."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.lowerings import choose
from lrunet_jax.ops.windows import pad

_BAND_BYTES = 1 << 21  # of the views of a band of rows; from 1 MB to 4 it is the same


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, lowering: str | None = None
) -> jax.Array:
    """Convolves x (C, H, W, B) with kernel (3, 3, C, out), padding 1.

    Args:
      x: (C, H, W, B).
      kernel: (3, 3, C, out), as Flax shapes it.
      stride: 1 or 2, in both directions.
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.

    Returns:
      (out, ceil(H / stride), ceil(W / stride), B), in x's dtype.
    """
    return choose(_LOWERINGS, lowering)(x, kernel, stride)


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, *, groups: int = 1
) -> jax.Array:
    """XLA's own convolution, of odd-sized kernels, padded to keep the size."""
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        [(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu(x, kernel, stride):
    # A matrix product for each band of rows, whose nine views are copied side by side
    # while they are in cache: for 256 images and 8 channels, 6 ms where one product
    # for all rows takes 35.
    padded, bands, rows = _bands(x, stride)
    matrix = kernel.reshape(-1, kernel.shape[3]).T.astype(x.dtype)

    def band(index):
        return jnp.einsum("ok,kpb->opb", matrix, _patches(padded, index, rows, stride))

    out = lax.map(band, jnp.arange(bands))
    height, width = (-(-size // stride) for size in x.shape[1:3])
    return jnp.swapaxes(out, 0, 1).reshape(len(matrix), height, width, x.shape[3])


def _cpu_forward(x, kernel, stride):
    return _cpu(x, kernel, stride), (x, kernel)


def _cpu_backward(stride, residuals, grad):
    x, kernel = residuals
    padded, bands, rows = _bands(x, stride)
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def add_band(total, index):
        of_band = lax.dynamic_slice_in_dim(grad, index * rows, rows, 1)
        patches = _patches(padded, index, rows, stride)
        # Two dimensions each: with three, XLA copies both transposed.
        flat = lambda a: lax.collapse(a, 1)
        return total + flat(patches) @ flat(of_band).T, None

    zeros = jnp.zeros((kernel[..., 0].size, len(grad)), dtype)
    total, _ = lax.scan(add_band, zeros, jnp.arange(bands))
    # Of images nobody asks it, and it isn't computed.
    (grad_x,) = jax.linear_transpose(lambda x: convolve(x, kernel, stride), x)(grad)
    return grad_x, total.reshape(kernel.shape).astype(kernel.dtype)


_cpu.defvjp(_cpu_forward, _cpu_backward)


def _bands(x, stride):
    """Pads x; returns it with the number of bands of output rows, and rows in each."""
    height, width = (-(-size // stride) for size in x.shape[1:3])
    # In an exported program the batch may be a symbol: then each band is one row.
    batch = x.shape[3] if isinstance(x.shape[3], int) else _BAND_BYTES
    row_bytes = 9 * x.shape[0] * width * batch * x.dtype.itemsize
    fits = lambda rows: height % rows == 0 and rows * row_bytes <= _BAND_BYTES
    rows = max(filter(fits, range(1, height + 1)), default=1)
    return pad(x), height // rows, rows


def _patches(padded, band, rows, stride):
    """The input of one band of output rows: (9 * C, rows * W / stride, B)."""
    first, count = band * rows * stride, (rows - 1) * stride + 1
    lines = lax.dynamic_slice_in_dim(padded, first, count + 2, 1)
    width = padded.shape[2] - 2
    views = [
        lines[:, i : i + count : stride, j : j + width : stride]
        for i in range(3)
        for j in range(3)
    ]
    return lax.collapse(jnp.concatenate(views), 1, 3)


_LOWERINGS: dict[str, Callable[..., jax.Array]] = {
    "cpu": _cpu,
    "xla": convolve,
}
