"""The networks, as Flax modules: NHWC images in [0, 1] to logits."""

from lrunet_jax.models.lrunet import LruNet
from lrunet_jax.models.registry import create_model, list_models, model_fields

__all__ = ["LruNet", "create_model", "list_models", "model_fields"]
