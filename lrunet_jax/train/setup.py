"""A network, its optimiser and the state to begin with, as a config describes them."""

import re

import jax
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from lrunet_jax.data import DatasetInfo
from lrunet_jax.models import create_model
from lrunet_jax.train.freeze import frozen_modules
from lrunet_jax.train.optim import create_optimizer, create_schedule
from lrunet_jax.train.state import TrainState, create_train_state
from lrunet_jax.train.targets import make_targets

# The sets in which a mirror image is one of its class.
MIRRORED = (
    *("beans", "cars196", "cats_vs_dogs", "cifar10", "cifar100", "eurosat"),
    *("fashion_mnist", "folder", "food101", "imagenette", "oxford_flowers102"),
    *("oxford_iiit_pet", "stl10", "tf_flowers"),
)


def for_data(
    config: ml_collections.ConfigDict, info: DatasetInfo
) -> ml_collections.ConfigDict:
    """The config, with the augmentation's size and flip set where they were not."""
    config = config.copy_and_resolve_references()
    augment, name = config.augment, re.split("[/:]", info.name)[0]
    if augment.size is None:
        augment.size = min(info.image_shape[:2])
    if augment.flip is None:
        augment.flip = name in MIRRORED
    return config


def setup(
    config: ml_collections.ConfigDict, num_classes: int
) -> tuple[nn.Module, optax.Schedule, optax.GradientTransformationExtraArgs]:
    """The network of a config, its learning rate by the epochs done, its optimiser.

    Raises:
      InputError: for a value that one of them does not take.
    """
    model = create_model(num_classes=num_classes, **config.model)
    schedule = create_schedule(
        config.schedule,
        config.learning_rate,
        epochs=config.epochs,
        decay_epochs=config.decay_epochs,
        decay_factor=config.decay_factor,
        warmup_epochs=warmup_within(config),
    )
    tx = create_optimizer(
        schedule,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        decay_of=config.decay_of,
    )
    return model, schedule, tx


def warmup_within(config: ml_collections.ConfigDict) -> float:
    """The epochs of warm-up: a tenth of a run that is not longer than they are."""
    warmup, epochs = config.warmup_epochs, config.epochs
    if config.schedule != "cosine" or warmup < epochs:
        return warmup
    return epochs / 10


def fresh_state(
    config: ml_collections.ConfigDict,
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    shape: tuple[int, ...],
    input_stats: dict[str, np.ndarray],
) -> TrainState:
    """The state that a run of a config begins with.

    Args:
      config: of the run.
      model: the network.
      tx: the optimiser.
      shape: of the training images, (n, H, W, channels).
      input_stats: by which the network normalises images, see `data.input_stats`;
        empty if it does not.
    """
    num_images, height, width, channels = shape
    return create_train_state(
        model,
        tx,
        jax.random.key(config.seed),
        (height, width, channels),
        num_images=num_images,
        input_stats=input_stats,
        targets=make_targets(model.num_classes, config.label_smoothing, config.mixup),
        ema_decay=config.ema_decay,
        frozen=frozen_modules(model, config.freeze, channels),
    )
