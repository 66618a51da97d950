"""The costs of a model: parameters, multiply-accumulates, activations."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lrunet_jax import ops

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A convolution or linear layer, for one image.

    Attributes:
      name: of its module.
      kernel: shape of its kernel, as Flax has it.
      output: (H, W, channels), or (features,).
      times: how often it is applied.
      params: numbers in kernel and bias.
      macs: multiply-accumulates, of all times together.
      activation_bytes: size of all its outputs, in float32.
    """

    name: str
    kernel: Shape
    output: Shape
    times: int
    params: int
    macs: int
    activation_bytes: int


def layer(
    path: tuple[str, ...], params: Mapping[str, Any], output: Shape, times: int = 1
) -> Layer:
    """The costs of applying a kernel, for the `costs` of the module that owns it.

    Args:
      path: of the module.
      params: its `kernel`, perhaps its `bias`.
      output: (H, W, channels), or (features,).
      times: how often it is applied.
    """
    kernel = params["kernel"].shape
    return Layer(
        name="/".join(path),
        kernel=kernel,
        output=output,
        times=times,
        params=sum(math.prod(leaf.shape) for leaf in params.values()),
        # Each output value meets all of the kernel that makes its channel.
        macs=times * math.prod(output) * math.prod(kernel[:-1]),
        activation_bytes=times * math.prod(output) * 4,
    )


def list_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The convolutions and linear layers, in the order in which they are applied.

    A module that owns a kernel says what applying it costs: its method `costs` takes
    the module's output and gives a list of `Layer`.

    Args:
      model: the network.
      image_shape: (H, W, channels).

    Raises:
      TypeError: if the model has a kernel whose costs no module states.
    """
    layers, _ = _layers_and_params(model, image_shape)
    return layers


def summarise(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """The costs of `model` for one image (H, W, channels).

    Returns:
      `params`, the trainable parameters; `conv_params`, those of convolutions and
      linear layers with their biases; `macs`, the multiply-accumulates of these; and
      `activation_bytes`, the size of what they put out, in float32.
    """
    layers, params = _layers_and_params(model, image_shape)
    return {
        "params": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "conv_params": sum(layer.params for layer in layers),
        "macs": sum(layer.macs for layer in layers),
        "activation_bytes": sum(layer.activation_bytes for layer in layers),
    }


def _layers_and_params(model, image_shape):
    """The layers, in order, and the abstract parameters, by tracing the model once."""
    layers: list[Layer] = []

    def ask(method, args, kwargs, context):
        out = method(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(context.module, "costs"):
            layers.extend(context.module.costs(out))
        return out

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(ask), ops.shapes_alone():
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    owners = (tuple(key.key for key in path) for path, _ in leaves)
    kernels = {"/".join(modules) for *modules, name in owners if name == "kernel"}
    if silent := kernels - {layer.name for layer in layers}:
        raise TypeError(f"modules own kernels whose costs nobody states: {silent}")
    return layers, params
