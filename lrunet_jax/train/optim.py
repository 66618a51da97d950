"""The optimiser and its learning rate schedules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lrunet_jax.errors import require_known

SCHEDULES = ("cosine", "piecewise")


def _mask(decays: Callable[[str], bool]) -> Callable[[Any], Any]:
    """A function from parameters to booleans, by the names of their leaves."""
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: decays(path[-1].key), params
    )


# Always a mask, so that the optimiser's state is the same with either.
_DECAYED = {
    "all": _mask(lambda name: True),
    "kernels": _mask(lambda name: name == "kernel"),
}


def create_optimizer(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    decay_of: str = "all",
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum and weight decay, in PyTorch's order.

    It adds the decay to the gradient, applies momentum, and multiplies by the learning
    rate. Its `update` takes the epochs done as the keyword `epoch`.

    Args:
      schedule: the learning rate by epochs done.
      momentum: the share of the former update that is kept.
      nesterov: whether it is Nesterov's momentum.
      weight_decay: share of a parameter that is added to its gradient.
      decay_of: `all` parameters, as the original, or `kernels` alone: neither biases
        nor norms.

    Raises:
      InputError: for another `decay_of`.
    """
    require_known("decay_of", decay_of, _DECAYED)
    # A chain in a chain, as in `optax.sgd`, so that a state keeps its form on disk.
    sgd = optax.chain(optax.trace(momentum, nesterov), _scale_by_epoch(schedule))
    return optax.chain(optax.add_decayed_weights(weight_decay, _DECAYED[decay_of]), sgd)


def create_schedule(
    name: str,
    learning_rate: float,
    *,
    epochs: int,
    decay_epochs: Sequence[float] = (),
    decay_factor: float = 0.1,
    warmup_epochs: float = 0.0,
) -> optax.Schedule:
    """A function from the epochs done, with their fraction, to the learning rate.

    `piecewise` is the original's: the rate is multiplied by `decay_factor` at each of
    the `decay_epochs`. In `cosine` it rises linearly from 0 over `warmup_epochs`, then
    falls to 0 at the end of `epochs`.

    Args:
      name: one of `SCHEDULES`.
      learning_rate: the largest rate.
      epochs: of the whole run.
      decay_epochs: when `piecewise` multiplies the rate; fractions are allowed.
      decay_factor: what `piecewise` multiplies it by.
      warmup_epochs: how long it rises in `cosine`.

    Raises:
      InputError: for another name.
    """
    require_known("schedule", name, SCHEDULES)
    if name == "piecewise":
        factors = dict.fromkeys(decay_epochs, decay_factor)
        return optax.piecewise_constant_schedule(learning_rate, factors)
    # Optax calls steps what are epochs here.
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_epochs else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup_epochs,
        decay_steps=epochs,
    )


def _scale_by_epoch(schedule):
    """Multiplies updates by minus the learning rate, the last part of SGD."""

    def update(updates, state, params=None, *, epoch, **_):
        rate = -schedule(epoch)
        scaled = jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates)
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
