"""The optimiser and its learning rate schedules."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from lrunet_jax.errors import require_known

SCHEDULES = ("cosine", "piecewise")


def _mask(decays: Callable[[str], bool]) -> Callable[[Any], Any]:
    """Parameters to booleans, by the names of their leaves."""
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: decays(path[-1].key), params
    )


# Always a mask, so that the optimiser's state is the same with either.
_DECAYED = {
    "all": _mask(lambda name: True),
    "kernels": _mask(lambda name: name == "kernel"),
}


def create_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay, in PyTorch's order.

    The decay is added to the gradient, then momentum, then the learning rate. It is on
    every parameter, as in the original, or on `kernels` alone: not on biases and norms.

    Raises:
      InputError: for another `decay_of`.
    """
    require_known("decay_of", config.decay_of, _DECAYED)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, _DECAYED[config.decay_of]),
        optax.sgd(schedule, config.momentum, config.nesterov),
    )


def create_schedule(
    config: ml_collections.ConfigDict, steps_per_epoch: int, delay: int = 0
) -> optax.Schedule:
    """The learning rate by step.

    `piecewise` is the original's: multiplied by `decay_factor` at the start of each
    of the `decay_epochs`. `cosine` rises linearly from 0 over `warmup_epochs`, then
    falls to 0 at the end of `epochs`.

    Args:
      config: of the run.
      steps_per_epoch: the last and smaller one included.
      delay: steps by which all of it is late (early, if negative).

    Raises:
      InputError: for another `schedule`.
    """
    require_known("schedule", config.schedule, SCHEDULES)
    if config.schedule == "piecewise":
        factors = {
            round(epoch * steps_per_epoch): config.decay_factor
            for epoch in config.decay_epochs
        }
        schedule = optax.piecewise_constant_schedule(config.learning_rate, factors)
    else:
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0 if config.warmup_epochs else config.learning_rate,
            peak_value=config.learning_rate,
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
            decay_steps=config.epochs * steps_per_epoch,
        )
    return lambda step: schedule(step - delay)
