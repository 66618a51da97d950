"""Evaluates a trained network on a test set.

    python -m lrunet_jax.evaluate PATH --data_dir=DIR

PATH is a PyTorch file, a converted directory, a run's workdir or one of its
checkpoints, or the name of a published checkpoint.
"""

import argparse
import json

from lrunet_jax.cli import run
from lrunet_jax.errors import require
from lrunet_jax.train.evaluation import evaluate
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.stored_model import load_test_set


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
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="weights may be NaN or infinite"
    )
    args = parser.parse_args()
    require(args.batch_size >= 1, "batch_size", args.batch_size, "at least 1")
    stored = open_model(args.path, args.step, allow_nonfinite=args.allow_nonfinite)
    dataset, names, split = load_test_set(stored, args.dataset, args.data_dir)
    result = evaluate(stored.create_model(), stored.variables, split, args.batch_size)
    correct, total = int(result.correct.sum()), int(result.total.sum())
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
