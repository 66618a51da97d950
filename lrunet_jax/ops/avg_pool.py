"""3x3 average pooling with stride 2 and padding 1."""

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.depthwise import depthwise
from lrunet_jax.ops.lowerings import choose


def avg_pool(x: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """Averages each 3x3 window, at stride 2 and padding 1.

    It always divides by 9, so that the zeros of the padding count, as is PyTorch's
    default.

    Args:
      x: (C, H, W, B).
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`.

    Returns:
      (C, ceil(H / 2), ceil(W / 2), B), in x's dtype.
    """
    return choose(_LOWERINGS, lowering)(x)


def _cpu(x):
    kernel = jnp.full((3, 3, 1, x.shape[0]), 1 / 9, x.dtype)
    return depthwise(x, kernel, stride=2, lowering="cpu")


def _xla(x):
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    total = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    return total / 9


_LOWERINGS = {"cpu": _cpu, "xla": _xla}
