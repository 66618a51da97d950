"""Convolutional networks with layer reuse (arXiv 1901.09615) in JAX and Flax."""

from lrunet_jax.models import create_model, list_models
from lrunet_jax.stored_model import load

__all__ = ["create_model", "list_models", "load"]
