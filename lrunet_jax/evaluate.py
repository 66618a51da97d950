"""Evaluates a trained network on a test set.

    python -m lrunet_jax.evaluate PATH --data_dir=DIR

PATH is a PyTorch file, a converted directory, a run's workdir or one of its
checkpoints, or the name of a published checkpoint.
"""

import argparse
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from lrunet_jax import data
from lrunet_jax.command import run
from lrunet_jax.errors import InputError, require, require_known
from lrunet_jax.steps import data_shardings, make_mesh
from lrunet_jax.stored_model import StoredModel, open_model


class Evaluation(NamedTuple):
    """What a network makes of a test set.

    Attributes:
      logits: (n, classes) float32.
      correct: (classes,), of the images of each class those that are recognised.
      total: (classes,), the images of each class.
      loss: mean cross entropy.
      images_per_second: compilation not counted.
    """

    logits: np.ndarray
    correct: np.ndarray
    total: np.ndarray
    loss: float
    images_per_second: float


def evaluate(
    model: nn.Module, variables: Any, split: data.Split, batch_size: int
) -> Evaluation:
    """Evaluates `model` on a whole split, every image once."""
    logits, seconds = predict(model, variables, split.images, batch_size)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    recognised = split.labels[np.argmax(logits, -1) == split.labels]
    return Evaluation(
        logits=logits,
        correct=np.bincount(recognised, minlength=model.num_classes),
        total=np.bincount(split.labels, minlength=model.num_classes),
        loss=float(np.mean(np.asarray(losses), dtype=np.float64)),
        images_per_second=len(logits) / seconds,
    )


def predict(
    model: nn.Module, variables: Any, images: np.ndarray, batch_size: int
) -> tuple[np.ndarray, float]:
    """The logits (n, classes) of uint8 images (n, H, W, channels).

    All devices share each batch where they divide it.

    Returns:
      The logits, and the seconds that they took, compilation not counted.
    """
    mesh = make_mesh()
    batch_size = min(batch_size, len(images))
    replicated, sharded = data_shardings(mesh)
    placement = sharded if batch_size % mesh.size == 0 else replicated
    variables = jax.device_put(variables, replicated)
    padding = [(0, -len(images) % batch_size), *[(0, 0)] * 3]
    batches = np.pad(images, padding).reshape(-1, batch_size, *images.shape[1:])
    place = lambda batch: jax.device_put(batch, placement)
    program = lower_forward(model, variables, place(batches[0])).compile()

    began = time.perf_counter()
    logits = [np.asarray(program(variables, place(batch))) for batch in batches]
    seconds = time.perf_counter() - began
    return np.concatenate(logits)[: len(images)], seconds


def lower_forward(model: nn.Module, variables: Any, images: jax.Array) -> Any:
    """The program from uint8 images to logits, always at the highest precision.

    By default a TPU multiplies float32 in bfloat16 and a GPU in TF32.
    """

    def forward(variables, images):
        return model.apply(variables, images.astype(jnp.float32) / 255, train=False)

    with jax.default_matmul_precision("highest"):
        return jax.jit(forward).lower(variables, images)


def choose_dataset(stored: StoredModel, dataset: str = "") -> str:
    """The name `dataset`, by default of what the network was trained on.

    Raises:
      InputError: if it is not known, or has other images or another number of classes
        than the network is made for.
    """
    name = dataset or stored.dataset
    if not name:
        raise InputError(
            f"{stored.name} does not say what it was trained on; dataset must be one "
            f"of {', '.join(data.NUM_CLASSES)}"
        )
    require_known("dataset", name, data.NUM_CLASSES)
    have = (stored.arguments["num_classes"], stored.channels)
    need = (data.NUM_CLASSES[name], data.IMAGE_SHAPES[name][2])
    require(
        have == need,
        "dataset",
        name,
        f"one of {have[0]} classes and images of {have[1]} channels, like {stored.name}"
        f"; {name} has {need[0]} and {need[1]}",
    )
    return name


def main() -> None:
    """Reads the arguments and prints the evaluation."""
    parser = argparse.ArgumentParser(
        prog="python -m lrunet_jax.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", help="or the name of a published checkpoint")
    parser.add_argument("--step", type=int, help="of a run; by default the best")
    parser.add_argument(
        "--dataset", default="", help="by default the one that it was trained on"
    )
    parser.add_argument("--data_dir", default="", help="of TFDS")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    require(args.batch_size >= 1, "batch_size", args.batch_size, "at least 1")
    stored = open_model(args.path, args.step)
    dataset = choose_dataset(stored, args.dataset)
    split = data.load_split(dataset, "test", args.data_dir)
    result = evaluate(stored.create_model(), stored.variables, split, args.batch_size)
    correct, total = int(result.correct.sum()), int(result.total.sum())
    names = data.class_names(dataset, args.data_dir)
    per_class = dict(zip(names, result.correct / result.total, strict=True))
    if args.json:
        figures = {
            "name": stored.name,
            "model": stored.arguments,
            "dataset": dataset,
            "accuracy": correct / total,
            "correct": correct,
            "total": total,
            "loss": result.loss,
            "recorded_accuracy": stored.accuracy,
            "epoch": stored.epoch,
            "per_class": per_class,
            "images_per_second": result.images_per_second,
        }
        print(json.dumps(figures))
        return
    print(f"network   {stored.name}: {stored.describe()}")
    if stored.accuracy is not None:
        epoch = "" if stored.epoch is None else f", epoch {stored.epoch} counted from 0"
        print(f"recorded  {stored.accuracy:.2%}{epoch}")
    print(f"data      {dataset}, {total:,} test images")
    print(f"accuracy  {correct / total:.2%} ({correct} of {total})")
    print(f"loss      {result.loss:.4f}")
    print(f"speed     {result.images_per_second:,.0f} images/s")
    for name, accuracy in per_class.items():
        print(f"          {accuracy:7.2%}  {name}")


if __name__ == "__main__":
    run(main)
