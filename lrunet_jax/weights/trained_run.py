"""The trained network of a run."""

from typing import Any

import jax
import numpy as np
from etils import epath

from lrunet_jax.data import DatasetInfo
from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.models import abstract_variables, create_model
from lrunet_jax.runs.facts import info_of
from lrunet_jax.runs.record import value_on
from lrunet_jax.runs.restoring import read_checkpoint
from lrunet_jax.weights.stored_model import (
    StoredModel,
    abstract_input_stats,
    require_facts,
)


def open_run(workdir: epath.Path, step: int | None = None) -> StoredModel:
    """Opens a checkpoint of a run; its averaged weights, if there are any.

    Args:
      workdir: of the run, absolute.
      step: which checkpoint; by default the best.

    Raises:
      InputError: if there is none, or it can't be read.
    """
    found = read_checkpoint(workdir / "checkpoints", step, _wanted_fields)
    info = info_of(found.data, found.config["dataset"])
    state, config = dict(found.fields), found.config
    epochs, metrics = int(state.pop("epoch")), found.metrics
    averages = state.pop("ema", {})
    stored = StoredModel(
        arguments=_arguments(config, info),
        channels=info.image_shape[2],
        variables=state | averages,
        counters=found.step,
        name=workdir.name,
        dataset=info.name,
        accuracy=value_on("test", "accuracy", metrics)
        if "test_accuracy" in metrics
        else None,
        epoch=epochs - 1 if epochs else None,  # the last complete one
        class_names=info.class_names,
        image_size=info.image_shape[:2],
        split_seed=config["split_seed"],
        test_digest=info.test_digest,
    )
    try:
        require_facts(stored)
    except ValueError as error:
        raise InputError(f"{workdir} can't be read: {in_one_line(error)}") from None
    return stored


def _arguments(config: dict[str, Any], info: DatasetInfo) -> dict[str, Any]:
    return config["model"] | {"num_classes": info.num_classes}


def _wanted_fields(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The fields of a training state that make a network, as abstract arrays."""
    info = info_of(facts, config["dataset"])
    channels = info.image_shape[2]
    learned = abstract_variables(create_model(**_arguments(config, info)), channels)
    fields: dict[str, Any] = {"epoch": jax.ShapeDtypeStruct((), np.int32)}
    if config["normalise"]:
        fields |= {"input_stats": abstract_input_stats(channels)}
    return fields | ({"ema": learned} if config["ema_decay"] else learned)
