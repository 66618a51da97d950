"""The abstract variables of a model: shapes and dtypes alone."""

import functools
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from lrunet_jax import ops


@functools.lru_cache(maxsize=32)  # of what takes most of the time of opening a file
def abstract_variables(model: nn.Module, channels: int) -> dict[str, Any]:
    """The `params` and `batch_stats` of a model, as `jax.ShapeDtypeStruct`.

    In float32, as they are stored, also where float64 is enabled.

    Args:
      model: the network.
      channels: the number of channels of its images.
    """
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    with ops.shapes_alone():
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
    as_stored = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32)
    return {
        name: jax.tree.map(as_stored, variables[name])
        for name in ("params", "batch_stats")
    }


def leaf_names(model: nn.Module, channels: int) -> list[str]:
    """The names of a model's variables, in the order in which it comes to them.

    JAX keeps trees by the alphabet.

    Args:
      model: the network.
      channels: the number of channels of its images.
    """
    names: list[str] = []

    def list_names(images):
        variables = model.init(jax.random.key(0), images)
        for collection in variables.values():
            names.extend(traverse_util.flatten_dict(collection, sep="/"))

    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    with ops.shapes_alone():
        jax.eval_shape(list_names, images)
    return names
