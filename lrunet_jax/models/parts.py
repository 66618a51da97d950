"""The parts of a network, found by what their shapes depend on."""

import functools

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from lrunet_jax import ops
from lrunet_jax.models.abstract import abstract_variables


def stem(model: nn.Module, channels: int) -> tuple[tuple[str, ...], int]:
    """The kernel that sees the images: its path in `params`, and its axis of channels.

    Args:
      model: the network.
      channels: the number of channels of its images.

    Raises:
      ValueError: if not just one array depends on that number, in one axis.
    """
    of_channels = lambda count: abstract_variables(model, count)["params"]
    own, others = map(
        traverse_util.flatten_dict, map(of_channels, (channels, channels + 1))
    )
    ((path, axis),) = (
        (path, axis)
        for path, leaf in own.items()
        for axis, size in enumerate(leaf.shape)
        if size != others[path].shape[axis]
    )
    return path, axis


def classifier(model: nn.Module, channels: int) -> list[str]:
    """The top-level modules whose shapes depend on the number of classes.

    Of each of the five networks that is the last layer alone.

    Args:
      model: the network.
      channels: the number of channels of its images.
    """
    other = model.clone(num_classes=2 if model.num_classes == 1 else 1)
    shapes = lambda model: {
        name: jax.tree.map(np.shape, module)
        for name, module in abstract_variables(model, channels)["params"].items()
    }
    own, others = shapes(model), shapes(other)
    return [name for name in own if own[name] != others[name]]


@functools.lru_cache(maxsize=32)
def top_level(model: nn.Module, channels: int) -> tuple[str, ...]:
    """The names at the top of a network, those of modules without arrays among them.

    Args:
      model: the network.
      channels: the number of channels of its images.
    """
    names = {
        name for tree in abstract_variables(model, channels).values() for name in tree
    }

    def note(function, args, kwargs, context):
        names.update(context.module.path[:1])
        return function(*args, **kwargs)

    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    with nn.intercept_methods(note), ops.shapes_alone():
        jax.eval_shape(model.init, jax.random.key(0), images)
    return tuple(sorted(names))
