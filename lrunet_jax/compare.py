"""Compares trained networks with their published or recorded accuracy.

    python -m lrunet_jax.compare PATHS... --data_dir=DIR

One row per network. PATHS are whatever `lrunet_jax.evaluate` takes. With --torch each
also runs in PyTorch, on the same images.
"""

import json
import time
from typing import Any

import numpy as np

from lrunet_jax.cli import ArgumentParser, print_table, require_torch, run
from lrunet_jax.data import Split, open_source
from lrunet_jax.errors import require
from lrunet_jax.models import summarise
from lrunet_jax.train.evaluation import evaluate
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.published import PUBLISHED
from lrunet_jax.weights.stored_model import StoredModel, load_test_set


def compare(
    stored: StoredModel, dataset: str, split: Split, batch_size: int
) -> dict[str, Any]:
    """The accuracy of a network here beside the published or the recorded one.

    Args:
      stored: the network.
      dataset: the name of the data set.
      split: its test set.
      batch_size: images at a time.

    Returns:
      `name`, `dataset`, `published` (the accuracy, a fraction; for an unpublished
      network the one that its file records, or None), `correct` and `total` (images),
      `difference` (of `correct` from the published number of images), the costs of
      `summarise`, `images_per_second` and the `logits` (n, classes).
    """
    model = stored.create_model()
    result = evaluate(model, stored.variables, split, batch_size)
    correct, total = int(result.correct.sum()), int(result.total.sum())
    published = stored.accuracy
    if stored.name in PUBLISHED:
        published = PUBLISHED[stored.name].accuracy
    return {
        "name": stored.name,
        "dataset": dataset,
        "published": published,
        "correct": correct,
        "total": total,
        "difference": None if published is None else correct - round(published * total),
        **summarise(model, split.images.shape[1:]),
        "images_per_second": result.images_per_second,
        "logits": result.logits,
    }


def compare_torch(
    stored: StoredModel, split: Split, batch_size: int, logits: np.ndarray
) -> dict[str, Any]:
    """The answers of PyTorch for the same network and images, on the CPU.

    Args:
      stored: the network.
      split: the test set.
      batch_size: images at a time.
      logits: (n, classes), those of the network here.

    Returns:
      `torch_correct`, `logit_difference`, the largest from `logits` here, and
      `torch_images_per_second`.
    """
    import torch

    from lrunet_jax.weights.torch_models import from_variables

    model = from_variables(stored.arguments, stored.channels, stored.variables).eval()
    images = torch.from_numpy(split.images).movedim(3, 1)  # channels last in memory
    forward = torch.inference_mode()(lambda batch: model(batch.float() / 255).numpy())
    forward(images[:batch_size])
    began = time.perf_counter()
    found = np.concatenate([forward(batch) for batch in images.split(batch_size)])
    seconds = time.perf_counter() - began
    return {
        "torch_correct": int(np.sum(np.argmax(found, -1) == split.labels)),
        "logit_difference": float(np.abs(found - logits).max()),
        "torch_images_per_second": len(found) / seconds,
    }


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = ArgumentParser(
        prog="python -m lrunet_jax.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("paths", nargs="+", help="or names of published checkpoints")
    parser.add_argument(
        "--dataset", default="", help="of networks that don't say what theirs was"
    )
    parser.add_argument("--data_dir", default="", help="of TFDS, or of pictures")
    parser.add_argument(
        "--image_size", type=int, default=0, help="by default that of the training"
    )
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--torch", action="store_true", help="run PyTorch as well")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    require(args.batch_size >= 1, "batch_size", args.batch_size, "at least 1")
    if args.dataset:
        open_source(args.dataset, args.data_dir)
    if args.torch:
        require_torch()
    networks = [open_model(path) for path in args.paths]
    sets: dict[Any, Any] = {}  # by what networks that share one have in common

    def test_set(net):
        images = (*net.image_size, net.channels, net.split_seed)
        key = (net.dataset, net.arguments["num_classes"], images)
        if key not in sets:
            name = net.dataset or args.dataset
            sets[key] = load_test_set(net, name, args.data_dir, args.image_size)
        return sets[key]

    found = list(map(test_set, networks))
    rows = []
    for stored, (dataset, _, split) in zip(networks, found, strict=True):
        row = compare(stored, dataset, split, args.batch_size)
        logits = row.pop("logits")
        if args.torch:
            row |= compare_torch(stored, split, args.batch_size, logits)
        rows.append(row)
    if args.json:
        print(json.dumps(rows))
    else:
        print_table([_printed(row) for row in rows])


def _printed(row):
    """A row for a person to read: accuracies in percent, speeds in whole images."""
    percent = lambda accuracy: "" if accuracy is None else f"{accuracy:.2%}"
    printed = {
        "checkpoint": row["name"],
        "data": row["dataset"],
        "published": percent(row["published"]),
        "here": percent(row["correct"] / row["total"]),
        "difference": row["difference"],
        "params": row["params"],
        "conv params": row["conv_params"],
        "MACs": row["macs"],
        "images/s": round(row["images_per_second"]),
    }
    if "torch_correct" in row:
        printed |= {
            "PyTorch": percent(row["torch_correct"] / row["total"]),
            "logit difference": f"{row['logit_difference']:.1e}",
            "PyTorch images/s": round(row["torch_images_per_second"]),
        }
    return printed


if __name__ == "__main__":
    run(main)
