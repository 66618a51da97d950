"""The lines that a run prints about itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import linen as nn

from lrunet_jax import data
from lrunet_jax.errors import some
from lrunet_jax.models import summarise
from lrunet_jax.runs.record import (
    Line,
    accuracy_of,
    chosen_on,
    is_evaluated,
    value_on,
)
from lrunet_jax.train.setup import warmup_within
from lrunet_jax.train.state import TrainState

FEW_IMAGES = 16  # for a batch norm


def print_model(
    model: nn.Module, fields: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> None:
    """Prints the network and its costs.

    Args:
      model: the network.
      fields: the arguments of `create_model`, `name` among them.
      image_shape: (H, W, channels).
    """
    costs = summarise(model, image_shape)
    listed = ", ".join(f"{k}={value}" for k, value in fields.items() if k != "name")
    print(f"model    {fields['name']} ({listed})")
    print(
        f"         {costs['params']:,} parameters, "
        f"{costs['macs']:,} multiply-accumulates an image"
    )


def print_data(info: data.DatasetInfo) -> None:
    """Prints the name, the sizes and the image shape of a data set."""
    to_train, to_test = info.num_images
    held_out = f", {info.num_validation:,} held out" if info.num_validation else ""
    shape = "x".join(map(str, info.image_shape))
    print(
        f"data     {info.name}: {to_train:,} training{held_out} and {to_test:,} test "
        f"images of {shape}, {info.num_classes} classes"
    )


def print_absent(name: str, split: data.Split, info: data.DatasetInfo) -> None:
    """Warns of classes without images in a split that is evaluated."""
    absent = sorted({*range(info.num_classes)} - {*map(int, split.labels)})
    if absent:
        listed = some(info.class_names[label] for label in absent)
        print(f"warning  no {name} images of {len(absent)} classes: {listed}")


def print_frozen(state: TrainState) -> None:
    """Prints what is trained where something is not; arrays may be abstract."""
    if not state.frozen:
        return
    trained = state.trained(state.params)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    print(
        f"frozen   all but {', '.join(trained)}: {count(trained):,} of "
        f"{count(state.params):,} parameters are trained"
    )


def print_devices(batch_size: int, matmul_precision: str) -> None:
    """Prints the devices, the batch size and the matmul precision."""
    device, processes = jax.devices()[0], jax.process_count()
    of_processes = f"{processes} processes, " if processes > 1 else ""
    print(
        f"devices  {jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{of_processes}batch {batch_size}, matmul precision {matmul_precision}"
    )


def print_last_batch(num_images: int, batch_size: int) -> None:
    """Warns of a last batch of an epoch that is too small to train on.

    On the digits, in batches of 359 with a last one of 1, LruNet ends epoch 12 at 87 %;
    with a last one of 5 at 95 %, of 17 at 97 %, of 33 at 98 %.
    """
    last = lambda batch: data.last_batch_size(num_images, batch)
    if last(batch_size) >= min(FEW_IMAGES, batch_size / 4):
        return
    devices = jax.device_count()
    others = range(batch_size - devices, 0, -devices)
    better = (size for size in others if last(size) >= min(FEW_IMAGES, size / 4))
    hint = next((f"; --config.batch_size={size} leaves more" for size in better), "")
    print(
        f"warning  the last batch of an epoch has {last(batch_size)} of {batch_size} "
        f"images, and batch norms train badly on so few{hint}"
    )


def print_warmup(config: ml_collections.ConfigDict) -> None:
    """Prints what becomes of a warm-up that is no shorter than the run."""
    if (warmup := warmup_within(config)) != config.warmup_epochs:
        print(
            f"warm-up  {warmup:g} epochs: warmup_epochs is {config.warmup_epochs:g}, "
            f"and no shorter than the run of {config.epochs}"
        )


def print_resumed(
    step: np.ndarray,
    epochs_done: np.ndarray,
    changed: Mapping[str, tuple[Any, Any]],
    verified: bool,
) -> None:
    """Prints the step that a run resumes from, and the changed fields of its config."""
    unverified = "" if verified else ", unverified: the checkpoint has no digest"
    print(f"resumed  step {int(step):,}, epoch {int(epochs_done) + 1}{unverified}")
    for field, (before, after) in changed.items():
        print(f"         {field}: {before!r} -> {after!r}")


def print_epoch(line: Line, epochs: int) -> None:
    """Prints a line of the record, for a person to read."""
    print(
        f"epoch {line['epoch']}/{epochs}: "
        f"train loss {line['train_loss']:.4f}, accuracy {line['train_accuracy']:.2%}"
        + "".join(
            f"; {split} loss {line[f'{split}_loss']:.4f}, "
            f"accuracy {line[f'{split}_accuracy']:.2%}"
            for split in ("validation", "test")
            if f"{split}_loss" in line
        )
        + f"; learning rate {line['learning_rate']:.4g}, "
        f"{line['images_per_second']:,.0f} images/s",
        flush=True,
    )


def print_result(
    state: TrainState, epochs: int, lines: Sequence[Line], workdir: epath.Path
) -> None:
    """Prints best and last test accuracy, with their files, and how to go on."""
    evaluated = [line for line in lines if is_evaluated(line)]
    if evaluated:
        # Of equals the latest: that is the one whose checkpoint is kept.
        best = max(evaluated, key=lambda line: (accuracy_of(line), line["step"]))
        last = evaluated[-1]
        split = chosen_on(last)
        chosen = " (chosen on the test set)" if split == "test" else ""
        for name, line, note in (("best", best, chosen), ("last", last, "")):
            print(
                f"{name} {split} accuracy {accuracy_of(line):.2%}{note}, epoch "
                f"{line['epoch']}: {workdir / 'checkpoints' / str(line['step'])}"
            )
        if "best_test_accuracy" in last:
            of_best, of_last = (
                value_on(name, "accuracy", last) for name in ("best_test", "test")
            )
            print(
                f"test accuracy {of_best:.2%} of the best epoch, {of_last:.2%} of the "
                "last"
            )
    print(f"curves {workdir / 'curves.png'}")
    if int(state.epoch) < epochs:
        print(
            f"stopped by a signal at step {int(state.step):,}, in epoch "
            f"{int(state.epoch) + 1} of {epochs}; the same command goes on"
        )
    else:
        print(f"complete: {epochs} epochs; more with --config.epochs")
