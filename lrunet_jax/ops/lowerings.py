"""The lowerings of operators, and the choice between them.

A lowering is a way to write an operator so that a backend's compiler makes fast
code of it. All lowerings of an operator have the same arguments and results:

* `cpu`: shifted sums and small matrix products, whose operands are stored in memory
  and not fused. XLA's own takes 1.4 s on a CPU for the weight gradient of a depthwise
  convolution of 8 images, where this takes milliseconds.
* `gpu`: LruNet's iteration alone, in few passes over whole arrays; other operators are
  those of `xla`. By XLA's program for an H100 a training step of N = 8, 256 images in
  float32, moves 13.4 GB in 1,390 kernels; that of `xla` 23.6 GB in 2,120.
* `tpu`: grouped kernels as dense ones that are zero off the diagonal, in blocks of
  128 channels, the width of a TPU's matrix unit, and one-hot products in place of
  gathers. LruNet's weights are permuted in place of its channels. By the TPU compiler's
  estimate for v5e, 0.55 to 0.64 of the cycles of `xla` for the training steps of the
  published LruNets in bfloat16; no shape was found for which `xla` takes fewer.
* `xla`: the compiler's own operators: `lax.conv_general_dilated` with
  `feature_group_count`, `lax.reduce_window`.
"""

import contextlib
from collections.abc import Mapping
from typing import TypeVar

import jax
from jax.extend import backend

from lrunet_jax.errors import require_known

LOWERINGS = ("cpu", "gpu", "tpu", "xla")
_CHOICES = ("auto", *LOWERINGS)
# Others, ROCm among them: `xla`, nothing else was compiled for them.
_OF_PLATFORM = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}

# A part of the key of every cache of JAX's, so that nothing traced in one context is
# used in another.
_context = jax.make_user_context("auto")

T = TypeVar("T")


def lowering(name: str) -> contextlib.AbstractContextManager[None]:
    """A context in which operators are traced in the lowering `name`.

        with ops.lowering("tpu"):
            lowered = jax.jit(model.apply).lower(variables, images)

    It takes effect while a function is traced: it goes around the function's call or
    its `lower`, not around its definition. Each thread starts with `auto`, the lowering
    of the platform.

    Raises:
      InputError: for a name that is neither `auto` nor one of `LOWERINGS`.
    """
    require_known("lowering", name, _CHOICES)
    return _entered(name)


def shapes_alone() -> contextlib.AbstractContextManager[None]:
    """A context for tracing where shapes alone are wanted, which no lowering changes.

    In `xla` the networks take half as long to trace as in `cpu`.
    """
    return _entered("xla")


@contextlib.contextmanager
def _entered(name):
    with _context(name):  # JAX's own would forget its way out if entered twice
        yield


def resolve(name: str | None = None) -> str:
    """The lowering `name`, by default that of the context, with `auto` by platform.

    To be called by an operator, not by the rules of its `custom_vjp`: those may be
    traced after the context has been left.

    Raises:
      InputError: for a name that is neither `auto` nor one of `LOWERINGS`.
    """
    name = _context.value if name is None else name
    require_known("lowering", name, _CHOICES)
    return of_platform(_platform()) if name == "auto" else name


def of_platform(platform: str) -> str:
    """The lowering that `auto` stands for on "cpu", "cuda", "rocm" or "tpu"."""
    return _OF_PLATFORM.get(platform, "xla")


def _platform():
    platform = jax.default_backend()
    if platform == "gpu":  # CUDA's name and ROCm's
        version = backend.get_backend().platform_version
        return "cuda" if "cuda" in version else "rocm"
    return platform


def choose(implementations: Mapping[str, T], name: str | None) -> T:
    """The implementation for the lowering `name`, which `resolve` explains.

    Args:
      implementations: by lowering; `xla` serves those that are not there.
      name: a lowering, `auto`, or None for the context's.
    """
    return implementations.get(resolve(name), implementations["xla"])
