"""The networks, as Flax modules: NHWC images in [0, 1] to logits."""

from lrunet_jax.models.abstract import abstract_variables, leaf_names
from lrunet_jax.models.costs import Layer, list_layers, summarise
from lrunet_jax.models.lrunet import LruNet
from lrunet_jax.models.mobilenet import MobileNet
from lrunet_jax.models.mobilenet_v2 import MobileNetV2
from lrunet_jax.models.parts import classifier, stem, top_level
from lrunet_jax.models.registry import create_model, list_models, model_fields
from lrunet_jax.models.shufflenet import ShuffleNet
from lrunet_jax.models.shufflenet_v2 import ShuffleNetV2

__all__ = [
    "Layer",
    "LruNet",
    "MobileNet",
    "MobileNetV2",
    "ShuffleNet",
    "ShuffleNetV2",
    "abstract_variables",
    "classifier",
    "create_model",
    "leaf_names",
    "list_layers",
    "list_models",
    "model_fields",
    "stem",
    "summarise",
    "top_level",
]
