"""The modules of a network that are not trained."""

import contextlib
from collections.abc import Iterable

from flax import linen as nn

from lrunet_jax.models import classifier, top_level

NOTHING, ALL_BUT_CLASSIFIER = "", "all_but_classifier"
FREEZE = (NOTHING, ALL_BUT_CLASSIFIER)


def frozen_modules(model: nn.Module, freeze: str, channels: int) -> tuple[str, ...]:
    """Names the top-level modules that are not trained.

    The classifier is what depends on the number of classes, see `models.classifier`.
    Everything before it is not trained: LruNet's last norm, and dropout too.

    Args:
      model: the network.
      freeze: one of `FREEZE`.
      channels: the number of channels of its images.
    """
    if freeze == NOTHING:
        return ()
    trained = classifier(model, channels)
    return tuple(name for name in top_level(model, channels) if name not in trained)


def in_evaluation(names: Iterable[str]) -> contextlib.AbstractContextManager[None]:
    """A context in which these top-level modules run as in evaluation.

    They are called with `train=False` whatever the network gives them by that keyword:
    norms take their running statistics and leave them, dropout does nothing. It takes
    effect while a function is traced.
    """
    paths = {(name,) for name in names}

    def call(function, args, kwargs, context):
        if "train" in kwargs and context.module.path in paths:
            kwargs = kwargs | {"train": False}
        return function(*args, **kwargs)

    return nn.intercept_methods(call)
