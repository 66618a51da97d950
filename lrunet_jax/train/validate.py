"""The values that a run's config may have."""

import ml_collections
import numpy as np

from lrunet_jax import ops
from lrunet_jax.data.info import MAX_SIDE
from lrunet_jax.errors import InputError, require, require_below_1, require_known
from lrunet_jax.runs.config import flatten
from lrunet_jax.train.freeze import FREEZE

PRECISIONS = ("default", "high", "highest")
FLOAT32_MAX = float(np.finfo(np.float32).max)
DTYPES = ("bfloat16", "float32")
FIELDS = {
    *("model.name", "dataset", "batch_size", "epochs", "seed", "dtype", "init_from"),
    "freeze",
    *("augment.size", "augment.padding", "augment.rotation", "augment.flip"),
    *("learning_rate", "momentum", "nesterov", "weight_decay", "decay_of"),
    *("schedule", "decay_epochs", "decay_factor", "warmup_epochs"),
    *("normalise", "label_smoothing", "mixup", "ema_decay"),
    *("matmul_precision", "lowering", "eval_every", "checkpoint_minutes"),
    *("image_size", "skip_broken", "validation", "split_seed"),
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
    ops.resolve(config.lowering)
    require_known("matmul_precision", config.matmul_precision, PRECISIONS)
    require_known("dtype", config.dtype, DTYPES)
    require(config.freeze in FREEZE, "freeze", config.freeze, f"one of {FREEZE}")
    for field in ("batch_size", "epochs", "eval_every", "augment.size"):
        is_set = values[field] is not None  # that of the crop may follow the image
        require(not is_set or values[field] >= 1, field, values[field], "at least 1")
    size, held_out = config.image_size, config.validation
    allowed = f"0, or a side of up to {MAX_SIDE}"
    require(0 <= size <= MAX_SIDE, "image_size", size, allowed)
    is_count = held_out < 1 or float(held_out).is_integer()
    allowed = "a number of images, or a share below 1, 0 for none"
    require(held_out >= 0 and is_count, "validation", held_out, allowed)
    for field in (
        "learning_rate",
        "weight_decay",
        "decay_factor",
        "warmup_epochs",
        "augment.padding",
        "augment.rotation",
        "mixup",
    ):
        allowed = "0 or more, and finite in float32"
        require(0 <= values[field] <= FLOAT32_MAX, field, values[field], allowed)
    minutes = config.checkpoint_minutes
    require(minutes >= 0, "checkpoint_minutes", minutes, "0 or more")
    # JAX takes the lower half of a longer one, so that two would give the same run.
    for field in ("seed", "split_seed"):
        allowed = "in [0, 2 to the 32nd)"
        require(0 <= values[field] < 1 << 32, field, values[field], allowed)
    rotation = config.augment.rotation
    require(rotation <= 180, "augment.rotation", rotation, "at most 180 degrees")
    mixup = config.mixup
    require(not 0 < mixup < 1e-6, "mixup", mixup, "0, or at least 1e-6")
    require(
        all(
            isinstance(epoch, int | float) and 0 <= epoch <= FLOAT32_MAX
            for epoch in config.decay_epochs
        ),
        "decay_epochs",
        config.decay_epochs,
        "numbers, 0 or more, and finite in float32",
    )
    for field in ("momentum", "label_smoothing", "ema_decay"):
        require_below_1(field, values[field])
    require(
        config.batch_size % num_devices == 0,
        "batch_size",
        config.batch_size,
        f"a multiple of the {num_devices} devices",
    )


def validate_with_data(
    config: ml_collections.ConfigDict, shape: tuple[int, ...]
) -> None:
    """Checks the values that depend on the training images, (n, H, W, channels).

    Raises:
      InputError: that names the first value that is not allowed.
    """
    num_images, *sides, _ = shape
    batch_size, augment = config.batch_size, config.augment
    allowed = f"at most {num_images}, the training images"
    require(batch_size <= num_images, "batch_size", batch_size, allowed)
    side = min(sides)
    allowed = f"at most {side}, the side of an image"
    require(augment.padding <= side, "augment.padding", augment.padding, allowed)
    room = side + 2 * augment.padding
    allowed = f"at most {room}, with the padding"
    require(augment.size <= room, "augment.size", augment.size, allowed)
    most = ((1 << 31) - 1) // -(-num_images // batch_size)
    allowed = f"at most {most}, as steps are counted in 32 bits"
    require(config.epochs <= most, "epochs", config.epochs, allowed)
