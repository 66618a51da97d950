"""Convolutional networks with layer reuse (arXiv 1901.09615) in JAX and Flax."""

from lrunet_jax.models import create_model, list_models
from lrunet_jax.train.loop import train_and_evaluate
from lrunet_jax.train.prediction import classify
from lrunet_jax.weights.loading import load

__all__ = ["classify", "create_model", "list_models", "load", "train_and_evaluate"]
