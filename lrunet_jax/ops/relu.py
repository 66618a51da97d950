"""ReLU and ReLU6 that keep NaN.

XLA for CPU drops it where `lax.max` or `lax.min` is fused into a reduction: of NaN,
the mean of `jax.nn.relu` is 0 there, and a network with a NaN among its weights gives
finite logits. Selections keep it, and so does `lax.clamp`, by which inference on CPU
took 1 to 8 % longer. On TPU, by its compiler's estimate, a step of ShuffleNet takes the
fewest cycles by `lax.max`, 0.6 % fewer than by selections and 0.9 % than by a clamp,
and one of MobileNetV2, with ReLU6, by a clamp, 1.4 % fewer than by selections.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lrunet_jax.ops.lowerings import choose


def relu(x: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """The positive part of x, in its shape and dtype, and NaN where x is NaN.

    The gradient at 0 is 0, as that of `jax.nn.relu`.

    Args:
      x: of any shape.
      lowering: `auto` or one of `LOWERINGS`; by default that of `ops.lowering`. That of
        `tpu` is `jax.nn.relu`, which keeps NaN wherever XLA's maximum does.
    """
    return choose(_RELU, lowering)(x)


def relu6(x: jax.Array, *, lowering: str | None = None) -> jax.Array:
    """The positive part of x up to 6, NaN where x is NaN; the gradient at 6 is 0."""
    return choose(_RELU6, lowering)(x, 6)


@functools.partial(jax.jit, static_argnums=1)  # traced once for all layers of a shape
def _selection(x, largest=math.inf):
    up_to = x if largest == math.inf else jnp.where(x >= largest, largest, x)
    return jnp.where(x <= 0, 0, up_to)


@functools.partial(jax.jit, static_argnums=1)
def _clamp(x, largest=math.inf):
    return lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), largest, x.dtype))


_Function = Callable[..., jax.Array]
_RELU: dict[str, _Function] = {"cpu": _selection, "tpu": jax.nn.relu, "xla": _clamp}
_RELU6 = {"cpu": _selection, "xla": _clamp}
