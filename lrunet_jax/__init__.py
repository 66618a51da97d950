"""Convolutional networks with layer reuse (arXiv 1901.09615) in JAX and Flax."""

from lrunet_jax.models import create_model, list_models

__all__ = ["create_model", "list_models"]
