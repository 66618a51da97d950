"""Weights as after some training, for which no program is compiled."""

import jax
import numpy as np

from lrunet_jax.models import abstract_variables


def random_variables(model, channels=3, *, seed=0, gain=1.0, dtype=np.float32):
    """Random variables of a model: no two values are equal, and no norm is fresh.

    Args:
      model: the network.
      channels: of its images.
      seed: of the weights.
      gain: of the kernels; 2 makes up for a ReLU after each.
      dtype: of all of them.
    """
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, (gain / fan_in) ** 0.5, leaf.shape).astype(dtype)
        return rng.uniform(0.5, 1.5, leaf.shape).astype(dtype)

    return jax.tree.map_with_path(value, abstract_variables(model, channels))
