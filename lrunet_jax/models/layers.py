"""The layers of the five networks, on (C, H, W, B) arrays.

Each holds its parameters under Flax's names and shapes and calls the operator of the
same name. They compute in the dtype of their input.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lrunet_jax import ops
from lrunet_jax.errors import InputError, require, require_below_1
from lrunet_jax.models.costs import Layer, layer

Initializer = Callable[..., Any]

# More is a slip of the finger: from 1e10 parameters on, and more classes than any set
# of images has.
MAX_WIDTH = 100
MAX_CLASSES = 1_000_000

# Normal with standard deviation sqrt(2 / (kh * kw * out)), not truncated, out not
# divided by the groups: as the original.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# Uniform within 1 / sqrt(fan_in): as PyTorch's layers begin by default.
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def symmetric_uniform(bound: float) -> Initializer:
    """An initializer: uniform in [-bound, bound)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def require_common_fields(model: Any) -> None:
    """Checks the attributes that all networks have, and `drop` where there is one.

    Raises:
      InputError: that names the first one whose value is not allowed.
    """
    classes = model.num_classes
    allowed = f"in [1, {MAX_CLASSES:,}]"
    require(1 <= classes <= MAX_CLASSES, "num_classes", classes, allowed)
    width = model.width_mult
    require(0 < width <= MAX_WIDTH, "width_mult", width, f"in (0, {MAX_WIDTH}]")
    require_below_1("drop", getattr(model, "drop", 0))


def channels_first(model: nn.Module, images: jax.Array) -> jax.Array:
    """Transposes images to (channels, H, W, B), the layout inside the networks.

    Where the network's variables hold the statistics of its training images,
    `input_stats/{mean,std}` (channels,), the images are normalised by them.

    Args:
      model: the network that is being called.
      images: (B, H, W, channels) in [0, 1].

    Raises:
      InputError: for images of integers, which `data.to_float` converts, and of another
        shape than the network takes.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images are {images.dtype}; they must be floats in [0, 1], like "
            "pixels / 255"
        )
    require_image_shape(images.shape, "channels")
    if model.has_variable("input_stats", "mean"):
        mean: jax.Array = model.get_variable("input_stats", "mean")
        require_image_shape(images.shape, len(mean))
        std: jax.Array = model.get_variable("input_stats", "std")
        images = ((images - mean) / std).astype(images.dtype)
    return jnp.transpose(images, (3, 1, 2, 0))


def require_image_shape(shape: tuple[int, ...], channels: int | str) -> None:
    """Raises an InputError unless `shape` is (B, H, W, channels).

    Args:
      shape: of images.
      channels: the number that the network takes, or a word where any will do.
    """
    fits = len(shape) == 4 and (isinstance(channels, str) or shape[3] == channels)
    if not fits or 0 in shape[1:]:
        raise InputError(
            f"images have the shape {shape}; it must be (B, H, W, {channels})"
        )


class KernelLayer(nn.Module):
    """A layer that applies its `kernel` once."""

    @nn.nowrap
    def costs(self, out: jax.Array) -> list[Layer]:
        """The costs of the call whose output (channels, H, W, 1) is `out`."""
        channels, height, width, _ = out.shape
        output = (height, width, channels)
        return [layer(self.path, self.variables["params"], output)]


class Conv(KernelLayer):
    """Dense 3x3 convolution, padding 1, no bias; `kernel` (3, 3, inputs, channels).

    The first layer of each network, which sees the images.
    """

    channels: int
    stride: int = 1
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (inputs, H, W, B) to (channels, ceil(H / stride), ..., B)."""
        if self.has_variable("params", "kernel"):
            inputs: int = self.get_variable("params", "kernel").shape[2]
            require_image_shape((x.shape[3], *x.shape[1:3], x.shape[0]), inputs)
        shape = (3, 3, x.shape[0], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        return ops.conv(x, kernel, stride=self.stride)


class Pointwise(KernelLayer):
    """Grouped 1x1 convolution; `kernel` (1, 1, inputs / groups, channels), `bias`."""

    channels: int
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (inputs, H, W, B) to (channels, H, W, B)."""
        inputs = x.shape[0]
        shape = (1, 1, inputs // self.groups, self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = ops.pointwise(x, kernel, groups=self.groups)
        if self.use_bias:
            bound = (inputs // self.groups) ** -0.5
            bias = self.param("bias", symmetric_uniform(bound), (self.channels,))
            x = x + bias.astype(x.dtype)[:, None, None, None]
        return x


class Depthwise(KernelLayer):
    """Depthwise 3x3 convolution, padding 1, no bias; `kernel` (3, 3, 1, channels)."""

    stride: int = 1
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (channels, H, W, B) to (channels, ceil(H / stride), ..., B)."""
        kernel = self.param("kernel", self.kernel_init, (3, 3, 1, x.shape[0]))
        return ops.depthwise(x, kernel, stride=self.stride)


class Kernel(nn.Module):
    """A `kernel` of the given shape, for a block that applies it itself."""

    shape: tuple[int, ...]
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self) -> jax.Array:
        """The array."""
        return self.param("kernel", self.kernel_init, self.shape)


class Linear(KernelLayer):
    """Fully connected layer; `kernel` (inputs, features), `bias`."""

    features: int
    kernel_init: Initializer = fan_in_uniform
    bias_init: Initializer | None = None  # None: uniform within 1 / sqrt(inputs)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (inputs, B) to (B, features)."""
        inputs = x.shape[0]
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        bias_init = self.bias_init or symmetric_uniform(inputs**-0.5)
        bias = self.param("bias", bias_init, (self.features,))
        return x.T @ kernel.astype(x.dtype) + bias.astype(x.dtype)

    @nn.nowrap
    def costs(self, out: jax.Array) -> list[Layer]:
        """The costs of the call whose output (1, features) is `out`."""
        return [layer(self.path, self.variables["params"], out.shape[1:])]


class Dropout(nn.Module):
    """Dropout by the rng `dropout`, of the same values on any number of devices."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Sets values of x (..., B) to 0 in training, and scales up the others."""
        if not train or self.rate == 0:
            return x
        return ops.dropout(x, self.make_rng("dropout"), self.rate)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics.

    The running variance takes the unbiased variance of the batch, the normalisation
    the biased one: Flax's own layer takes the biased one for both. Means and
    variances are float32 whatever the input's dtype (float64 for float64).

    Attributes:
      channels: of the input.
      momentum: the share of the old running value that is kept, as Flax means it;
        what PyTorch calls momentum is the rest, 0.1.
    """

    channels: int
    momentum: float = 0.9

    def setup(self) -> None:
        """Declares the parameters `scale`, `bias` and the statistics `mean`, `var`."""
        shape = (self.channels,)
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises x (channels, H, W, B), by its own moments or the running ones."""
        x, moments = ops.batch_norm(x, self.norm(train=train))
        if moments is not None:
            self.update(moments)
        return x

    def norm(self, *, train: bool) -> ops.Norm:
        """The parameters for `ops.batch_norm`; in training without the statistics."""
        running = None if train else ops.Moments(self.mean.value, self.var.value)
        return ops.Norm(self.scale, self.bias, running)

    def update(self, moments: ops.Moments) -> None:
        """Moves the running statistics towards the `moments` of a batch."""
        self.mean.value = self._mix(self.mean.value, moments.mean)
        self.var.value = self._mix(self.var.value, moments.variance)

    def _mix(self, old, new):
        return self.momentum * old + (1 - self.momentum) * new
