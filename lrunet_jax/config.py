"""What a run's config may hold, and what changed since it was stored."""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from lrunet_jax.data import NUM_CLASSES
from lrunet_jax.errors import InputError, require, require_known
from lrunet_jax.optim import SCHEDULES

PRECISIONS = ("default", "high", "highest")
DTYPES = ("bfloat16", "float32")

# Fields of the model that parameters do not depend on.
_FREE_MODEL_FIELDS = ("model.drop", "model.unroll", "model.lowering")


def validate(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Checks every value that does not depend on data; models check their own.

    Raises:
      InputError: for the first value that can't be.
    """
    values = dict(flatten(config))
    require_known("dataset", config.dataset, NUM_CLASSES)
    require_known("schedule", config.schedule, SCHEDULES)
    require_known("matmul_precision", config.matmul_precision, PRECISIONS)
    require_known("dtype", config.dtype, DTYPES)
    for field in ("batch_size", "epochs", "eval_every", "augment.size"):
        require(values[field] >= 1, field, values[field], "at least 1")
    for field in (
        "seed",
        "learning_rate",
        "weight_decay",
        "decay_factor",
        "warmup_epochs",
        "augment.padding",
        "augment.rotation",
        "checkpoint_minutes",
        "mixup",
    ):
        require(values[field] >= 0, field, values[field], "0 or more")
    require(
        all(
            isinstance(epoch, int | float) and epoch >= 0
            for epoch in config.decay_epochs
        ),
        "decay_epochs",
        config.decay_epochs,
        "numbers, 0 or more",
    )
    for field in ("momentum", "label_smoothing", "ema_decay"):
        require(0 <= values[field] < 1, field, values[field], "in [0, 1)")
    require(
        config.batch_size % num_devices == 0,
        "batch_size",
        config.batch_size,
        f"a multiple of the {num_devices} devices",
    )
    require(
        config.warmup_epochs < config.epochs,
        "warmup_epochs",
        config.warmup_epochs,
        f"less than the {config.epochs} epochs",
    )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple]:
    """The fields that differ, with their old and new values (None: not there)."""
    before, after = dict(flatten(old)), dict(flatten(new))
    fields = sorted(before | after)
    pairs = {field: (before.get(field), after.get(field)) for field in fields}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def require_same_run(changed: Mapping[str, tuple], workdir: str) -> None:
    """Raises an InputError if what a run's arrays depend on is among the `changes`."""
    for field, (old, new) in changed.items():
        of_model = field.startswith("model.") and field not in _FREE_MODEL_FIELDS
        of_state = field == "ema_decay" and bool(old) != bool(new)
        if of_model or of_state or field in ("dataset", "normalise"):
            raise InputError(
                f"{field} is {new!r}, but the run in {workdir} has {old!r}; give "
                "another --workdir, or the same value to go on"
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, tuples as lists: as JSON gives them back."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
