"""The optimiser and its learning rate schedules."""

import ml_collections
import optax

from lrunet_jax.errors import require_known

SCHEDULES = ("cosine", "piecewise")


def create_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """SGD with momentum and weight decay on every parameter, in PyTorch's order.

    The decay is added to the gradient, then momentum, then the learning rate.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, config.momentum),
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
