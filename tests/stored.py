"""Small networks on disk."""

from weights import random_variables

from lrunet_jax.models import create_model
from lrunet_jax.weights.loading import save_model
from lrunet_jax.weights.stored_model import StoredModel


def store(path, *, channels=1, classes=10, **facts):
    """Writes a LruNet of random weights as the directory `path`, and returns it."""
    arguments = {"name": "lrunet", "layer_reuse": 1, "width_mult": 0.125}
    arguments |= {"num_classes": classes}
    stored = StoredModel(
        arguments=arguments,
        channels=channels,
        variables=random_variables(create_model(**arguments), channels),
        counters=0,
        name=path.name,
        **{"dataset": "", "accuracy": None, "epoch": None} | facts,
    )
    save_model(stored, str(path))
    return stored
