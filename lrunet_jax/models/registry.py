"""Models by name."""

import dataclasses
from typing import Any

from flax import linen as nn

from lrunet_jax.errors import InputError, require_known
from lrunet_jax.models.lrunet import LruNet
from lrunet_jax.models.mobilenet import MobileNet
from lrunet_jax.models.mobilenet_v2 import MobileNetV2
from lrunet_jax.models.shufflenet import ShuffleNet
from lrunet_jax.models.shufflenet_v2 import ShuffleNetV2

_MODELS: dict[str, type[nn.Module]] = {
    "lrunet": LruNet,
    "mobilenet": MobileNet,
    "mobilenet_v2": MobileNetV2,
    "shufflenet": ShuffleNet,
    "shufflenet_v2": ShuffleNetV2,
}


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """The model `name`, with its class's attributes as keywords.

    Raises:
      InputError: for an unknown name or attribute, or a value that the model refuses.
    """
    fields = model_fields(name)
    for key in kwargs:
        require_known(f"a field of model {name!r}", key, fields)
    try:
        return _MODELS[name](**kwargs)
    except InputError as error:
        raise InputError(f"model.{error}") from None


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(_MODELS)


def model_fields(name: str) -> dict[str, Any]:
    """The attributes of the model `name`, with their defaults.

    Raises:
      InputError: for an unknown name.
    """
    require_known("model.name", name, _MODELS)
    fields = dataclasses.fields(_MODELS[name])
    return {
        field.name: field.default
        for field in fields
        if field.name not in ("parent", "name")
    }
