"""The values that a run's config may have."""

import ml_collections

from lrunet_jax import ops
from lrunet_jax.data import dataset_info
from lrunet_jax.errors import InputError, require, require_known
from lrunet_jax.runs.config import flatten

PRECISIONS = ("default", "high", "highest")
DTYPES = ("bfloat16", "float32")
FIELDS = {
    *("model.name", "dataset", "batch_size", "epochs", "seed", "dtype", "init_from"),
    *("augment.size", "augment.padding", "augment.rotation", "augment.flip"),
    *("learning_rate", "momentum", "nesterov", "weight_decay", "decay_of"),
    *("schedule", "decay_epochs", "decay_factor", "warmup_epochs"),
    *("normalise", "label_smoothing", "mixup", "ema_decay"),
    *("matmul_precision", "lowering", "eval_every", "checkpoint_minutes"),
}


def validate(config: ml_collections.ConfigDict, num_devices: int) -> None:
    """Checks every value that does not depend on data.

    Models, schedules and optimisers check their own.

    Raises:
      InputError: that names the first value that is not allowed.
    """
    values = dict(flatten(config))
    if missing := FIELDS - values.keys():
        raise InputError(
            f"config has no field {', '.join(map(repr, sorted(missing)))}; "
            "configs/default.py documents all fields"
        )
    dataset_info(config.dataset)
    ops.resolve(config.lowering)
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
    require(config.seed < 1 << 63, "seed", config.seed, "less than 2 to the 63rd")
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
