"""The choice between the lowerings of operators.

A lowering is a way to write an operator so that a backend's compiler makes fast
code of it. All lowerings of an operator have the same arguments and results:

* `cpu`: shifted sums and small matrix products, whose operands are in memory, not
  computed on the way. The weight gradient of XLA's own depthwise convolution takes
  1.4 s on a CPU for 8 images.
* `tpu`: grouped kernels as dense ones that are zero off the diagonal, in blocks of
  128 channels, the width of a TPU's matrix unit, and one-hot products for what would
  be gathered. LruNet's channels are not shuffled. By the TPU compiler's estimate for
  v5e, 0.55 to 0.64 of the cycles of `xla` for the training steps of the published
  LruNets in bfloat16; shapes with which `xla` would be ahead were not found.
* `xla`: the compiler's own operators: `lax.conv_general_dilated` with
  `feature_group_count`, `lax.reduce_window`.
"""

import contextlib
from collections.abc import Mapping
from typing import TypeVar

import jax

from lrunet_jax.errors import require_known

LOWERINGS = ("cpu", "tpu", "xla")
_CHOICES = ("auto", *LOWERINGS)
_OF_PLATFORM = {"cpu": "cpu", "tpu": "tpu"}  # others: `xla`, not measured

# A part of the key of every cache of JAX's, so that nothing traced in one context is
# used in another.
_context = jax.make_user_context("auto")

T = TypeVar("T")


def lowering(name: str) -> contextlib.AbstractContextManager[None]:
    """A context in which operators are traced in the lowering `name`.

        with ops.lowering("tpu"):
            lowered = jax.jit(model.apply).lower(variables, images)

    It counts where a function is traced: around its call or its `lower`, not around
    its definition. Each thread starts with `auto`, the lowering of the platform.

    Raises:
      InputError: for a name that is neither `auto` nor one of `LOWERINGS`.
    """
    require_known("lowering", name, _CHOICES)
    return _context(name)


def resolve(name: str | None = None) -> str:
    """The lowering `name`, by default that of the context, with `auto` by platform.

    To be called where an operator is called, not in a rule of its differentiation:
    that may be traced when the context is over.

    Raises:
      InputError: for a name that is neither `auto` nor one of `LOWERINGS`.
    """
    name = _context.value if name is None else name
    require_known("lowering", name, _CHOICES)
    if name == "auto":
        return _OF_PLATFORM.get(jax.default_backend(), "xla")
    return name


def choose(implementations: Mapping[str, T], name: str | None) -> T:
    """The implementation for a lowering; `xla` where it has none of its own."""
    return implementations.get(resolve(name), implementations["xla"])
