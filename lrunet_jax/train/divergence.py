"""The first value that is not finite where a run diverges."""

from collections.abc import Iterable

import numpy as np

from lrunet_jax.runs.leaves import not_finite
from lrunet_jax.train.state import TrainState


def describe_divergence(
    states: Iterable[TrainState], names: list[str]
) -> tuple[str, bool]:
    """Names what is not finite first, and at which step.

    Args:
      states: after each step, until one that is not finite.
      names: see `leaf_names`, in the order in which the network comes to them.

    Returns:
      The words, and whether the weights that the run began with did it, as it was the
      first step and nothing had been learned.
    """
    for state in states:
        step = int(state.step)
        if first := _first_not_finite(state, names):
            from_weights = step == 1 and not first.startswith("the weight")
            return f"{first} is not finite any more at step {step:,}", from_weights
    # Where a step is not the same twice, as on some devices.
    return "the loss or a weight is not finite any more", False


def _first_not_finite(state: TrainState, names: list[str]) -> str:
    """The first in the order of a step: batch statistics, the loss, weights."""
    statistics, weights = map(not_finite, (state.batch_stats, state.params))
    for name in names:
        if name in statistics:
            return f"the statistic {name}"
    if not np.isfinite(state.metrics.loss):
        return "the loss"
    return next((f"the weight {name}" for name in names if name in weights), "")
