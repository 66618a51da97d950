"""Evaluates a trained network on a test set.

    python -m lrunet_jax.evaluate PATH --data_dir=DIR

PATH is a PyTorch file, a converted directory, a run's workdir or one of its
checkpoints, or the name of a published checkpoint.
"""

import json

from lrunet_jax.cli import ArgumentParser, json_number, run
from lrunet_jax.errors import require
from lrunet_jax.figures.files import figure_path, written_to
from lrunet_jax.figures.sheets import plot_evaluation
from lrunet_jax.train import scores
from lrunet_jax.train.evaluation import evaluate
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.stored_model import load_test_set

_SHOWN = 24  # mistakes on the sheet


def main() -> None:
    """Reads the arguments and prints the evaluation."""
    parser = ArgumentParser(
        prog="python -m lrunet_jax.evaluate", description=__doc__.splitlines()[0]
    )
    parser.add_argument("path", help="or the name of a published checkpoint")
    parser.add_argument("--step", type=int, help="of a run; by default the best")
    parser.add_argument(
        "--dataset", default="", help="by default the one that it was trained on"
    )
    parser.add_argument("--data_dir", default="", help="of TFDS, or of pictures")
    parser.add_argument(
        "--image_size", type=int, default=0, help="by default that of the training"
    )
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="weights may be NaN or infinite"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="the confusion matrix and mistakes, drawn"
    )
    args = parser.parse_args()
    require(args.batch_size >= 1, "batch_size", args.batch_size, "at least 1")
    path = None if args.plot is None else figure_path("plot", args.plot)
    stored = open_model(args.path, args.step, allow_nonfinite=args.allow_nonfinite)
    dataset, names, split = load_test_set(
        stored, args.dataset, args.data_dir, args.image_size
    )
    result = evaluate(stored.create_model(), stored.variables, split, args.batch_size)
    answers = result.logits, split.labels
    correct, total = int(result.correct.sum()), int(result.total.sum())
    per_class = {
        name: correct / count if count else None
        for name, correct, count in zip(
            names, result.correct, result.total, strict=True
        )
    }
    top5 = scores.top_correct(*answers, 5) if len(names) > 10 else None
    off = scores.calibration_error(*answers)
    if args.json:
        figures = {
            "name": stored.name,
            "model": stored.arguments,
            "dataset": dataset,
            "accuracy": correct / total,
            "correct": correct,
            "total": total,
            "loss": json_number(result.loss),
            "recorded_accuracy": stored.accuracy,
            "epoch": stored.epoch,
            "per_class": per_class,
            "confusion": scores.confusion_matrix(*answers).tolist(),
            "calibration_error": json_number(off),
            "images_per_second": result.images_per_second,
        }
        if top5 is not None:
            figures["top5"] = top5 / total
        print(json.dumps(figures))
    else:
        print(f"network   {stored.name}: {stored.describe()}")
        if stored.accuracy is not None:
            known = stored.epoch is not None
            epoch = f", epoch {stored.epoch} counted from 0" if known else ""
            print(f"recorded  {stored.accuracy:.2%}{epoch}")
        print(f"data      {dataset}, {total:,} test images")
        print(f"accuracy  {correct / total:.2%} ({correct} of {total})")
        if top5 is not None:
            print(f"top-5     {top5 / total:.2%} ({top5} of {total})")
        print(f"loss      {result.loss:.4f}")
        print(f"ECE       {off:.2%} (expected calibration error, 15 bins)")
        print(f"speed     {result.images_per_second:,.0f} images/s")
        for name, accuracy in per_class.items():
            share = "no images" if accuracy is None else f"{accuracy:9.2%}"
            print(f"        {share}  {name}")
    if path is not None:
        with written_to("plot", args.plot):
            _plot(*answers, split.images, names, path)


def _plot(logits, labels, images, names, path):
    """Draws the confusion matrix and the most confident mistakes."""
    mistakes = scores.confident_mistakes(logits, labels)
    shown = mistakes[:_SHOWN]
    predicted, confidence = scores.predictions(logits[shown])
    captions = [
        f"{names[label]} -> {names[guess]}, {sure:.0%}"
        for label, guess, sure in zip(labels[shown], predicted, confidence, strict=True)
    ]
    title = f"{len(shown)} most confident of {len(mistakes):,} mistakes, true -> "
    plot_evaluation(
        scores.confusion_matrix(logits, labels),
        names,
        list(images[shown]),
        captions,
        f"{title}predicted" if len(shown) else "no mistakes",
        path,
    )


if __name__ == "__main__":
    run(main)
