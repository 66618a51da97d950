"""The names of the lowerings, and the one place that chooses between them.

A lowering is a way to write an operator so that a backend's compiler makes fast
code of it. All lowerings of an operator have the same arguments and results:

* `mapped`: shifted sums and small matrix products, whose operands are in memory, not
  computed on the way. For CPU, where the weight gradient of XLA's own depthwise
  convolution takes 1.4 s for 8 images.
* `xla`: `lax.conv_general_dilated` with `feature_group_count`, `lax.reduce_window`.
* `dense`: grouped kernels as dense ones that are zero off the diagonal, in blocks of
  128 channels, the width of a TPU's matrix unit, and one-hot products for what would
  be gathered. LruNet's channels are not shuffled. By the TPU compiler's estimate for
  v5e, 0.55 to 0.64 of the cycles of `xla` for the training steps of the published
  LruNets in bfloat16; shapes with which `xla` would be ahead were not found.
"""

import jax

from lrunet_jax.errors import require_known

LOWERINGS = ("mapped", "xla", "dense")
_OF_PLATFORM = {"cpu": "mapped", "tpu": "dense"}  # others: `xla`, not measured


def resolve(lowering: str) -> str:
    """The lowering that `lowering` stands for: itself, or `auto` by platform.

    Raises:
      InputError: for a name that is neither `auto` nor one of `LOWERINGS`.
    """
    require_known("lowering", lowering, ("auto", *LOWERINGS))
    if lowering == "auto":
        return _OF_PLATFORM.get(jax.default_backend(), "xla")
    return lowering
