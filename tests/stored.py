"""Small networks on disk, for which no program is compiled."""

import jax
import numpy as np

from lrunet_jax.models import abstract_variables, create_model
from lrunet_jax.weights.loading import save_model
from lrunet_jax.weights.stored_model import StoredModel


def store(path, *, channels=1, classes=10, **facts):
    """Writes a LruNet of random weights as the directory `path`, and returns it."""
    arguments = {"name": "lrunet", "layer_reuse": 1, "width_mult": 0.125}
    arguments |= {"num_classes": classes}
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return rng.normal(0, fan_in**-0.5, leaf.shape).astype(leaf.dtype)
        return rng.uniform(0.5, 1, leaf.shape).astype(leaf.dtype)

    shapes = abstract_variables(create_model(**arguments), channels)
    stored = StoredModel(
        arguments=arguments,
        channels=channels,
        variables=jax.tree.map_with_path(value, shapes),
        counters=0,
        name=path.name,
        **{"dataset": "", "accuracy": None, "epoch": None} | facts,
    )
    save_model(stored, str(path))
    return stored
