"""Dense 3x3 convolution with padding 1: the networks' first layer."""

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.lowering import resolve
from lrunet_jax.ops.windows import pad, windows


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, lowering: str = "auto"
) -> jax.Array:
    """Convolves x (C, H, W, B) with kernel (3, 3, C, out), padding 1.

    Args:
      x: (C, H, W, B).
      kernel: (3, 3, C, out), as Flax shapes it.
      stride: 1 or 2, in both directions.
      lowering: `auto` or one of `LOWERINGS`.

    Returns:
      (out, ceil(H / stride), ceil(W / stride), B), in x's dtype.
    """
    return _LOWERINGS[resolve(lowering)](x, kernel, stride)


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


def _mapped(x, kernel, stride):
    # One matrix product; the nine views are copied, which few channels can afford.
    patches = jnp.stack(list(windows(pad(x), stride)))
    matrix = kernel.reshape(9, x.shape[0], -1).astype(x.dtype)
    return jnp.einsum("kio,kihwb->ohwb", matrix, patches)


_LOWERINGS = {"mapped": _mapped, "xla": convolve, "dense": convolve}
