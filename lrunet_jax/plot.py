"""Draws the curves of runs, and their accuracy against parameters and iterations.

    python -m lrunet_jax.plot RUNS... --out=runs.png

Runs that differ in nothing but the seed are averaged. Published accuracies are grey.
"""

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from lrunet_jax.command import run
from lrunet_jax.data import IMAGE_SHAPES
from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.metrics import Line, accuracy_of
from lrunet_jax.models import create_model, list_models
from lrunet_jax.published import PUBLISHED
from lrunet_jax.results import Group, mean_curve, read_groups
from lrunet_jax.summary import summarise

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure

FORMATS = (".pdf", ".png", ".svg")

_MARKERS = dict(zip(list_models(), "osD^v", strict=True))
_PUBLISHED = {"color": "0.5", "fillstyle": "none"}
# What to draw of an epoch, by panel and by the style of its line.
_CURVES: dict[str, dict[str, Any]] = {
    "loss": {
        "training": lambda line: line.get("train_loss"),
        "test": lambda line: line.get("test_ema_loss", line.get("test_loss")),
    },
    "accuracy in %": {
        "training": lambda line: 100 * line["train_accuracy"],
        "test": lambda line: (
            100 * accuracy_of(line) if "test_accuracy" in line else None
        ),
    },
}
_STYLES = {"training": "--", "test": "-"}


def plot_run(lines: Sequence[Line], path: epath.Path) -> None:
    """Draws loss and accuracy by epoch, training and test.

    Args:
      lines: of the run's record.
      path: of the picture; its name says the format.
    """
    figure = _figure(width=9, height=3.6)
    _draw_curves(figure.subplots(1, 2), {"": [lines]})
    _save(figure, path)


def plot_groups(groups: Sequence[Group], path: epath.Path) -> None:
    """Draws curves and comparisons, four panels for each data set."""
    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        by_dataset.setdefault(group.config["dataset"], []).append(group)
    figure = _figure(width=10, height=7.5 * len(by_dataset))
    parts = figure.subfigures(len(by_dataset), 1, squeeze=False)
    for (part,), (dataset, of_it) in zip(parts, by_dataset.items(), strict=True):
        part.suptitle(dataset)
        curves, comparisons = part.subplots(2, 2)
        _draw_curves(curves, {group.label: group.records() for group in of_it})
        _draw_against_parameters(comparisons[0], of_it, dataset)
        _draw_against_iterations(comparisons[1], of_it, dataset)
    _save(figure, path)


def _draw_curves(
    panels: Sequence[Any], records: Mapping[str, Sequence[Sequence[Line]]]
) -> None:
    """Means over the runs of each label, in a band of one deviation."""
    for axes, (name, values) in zip(panels, _CURVES.items(), strict=True):
        for number, (label, of_label) in enumerate(records.items()):
            for split, value in values.items():
                curve = mean_curve(of_label, value)
                means = [point.mean for point in curve.values()]
                axes.plot(
                    curve.keys(),
                    means,
                    color=f"C{number}",
                    linestyle=_STYLES[split],
                    marker="." if len(curve) < 30 else "",
                    label=_as_text(label) if split == "test" else "",
                )
                axes.fill_between(
                    curve.keys(),
                    [point.mean - point.deviation for point in curve.values()],
                    [point.mean + point.deviation for point in curve.values()],
                    color=f"C{number}",
                    alpha=0.15,
                    linewidth=0,
                )
        for split, style in _STYLES.items():
            axes.plot([], [], color="0.3", linestyle=style, label=split)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()


def _draw_against_parameters(axes, groups, dataset):
    published = [entry for entry in PUBLISHED.values() if entry.dataset == dataset]
    for number, group in enumerate(groups):
        _draw_last(axes, group.costs()["params"], group, number)
    for entry in published:
        model = create_model(**entry.model_arguments)
        params = summarise(model, IMAGE_SHAPES[dataset])["params"]
        axes.plot(params, 100 * entry.accuracy, _MARKERS[entry.model], **_PUBLISHED)
    shown = {group.config["model.name"] for group in groups}
    for name in sorted(shown | {entry.model for entry in published}):
        axes.plot([], [], _MARKERS[name], **_PUBLISHED, label=name)
    axes.set(xlabel="parameters", ylabel="last test accuracy in %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(title="hollow: published" if published else "")


def _draw_against_iterations(axes, groups, dataset):
    """LruNets; those that differ in nothing but their iterations are joined."""
    field = "model.layer_reuse"
    families: dict[str, list[tuple[int, float]]] = {}
    for number, group in enumerate(groups):
        if field in group.config:
            iterations = group.config[field]
            _draw_last(axes, iterations, group, number)
            others = group.config | {field: "any", "seed": "any"}
            family = families.setdefault(json.dumps(others, sort_keys=True), [])
            family.append((iterations, 100 * group.last().mean))
    for family in families.values():
        axes.plot(*zip(*sorted(family), strict=True), color="0.3", linewidth=0.8)
    points = [
        (entry.arguments["layer_reuse"], 100 * entry.accuracy)
        for entry in PUBLISHED.values()
        if entry.dataset == dataset and entry.model == "lrunet"
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o:", **_PUBLISHED, label="published")
        axes.legend()
    axes.set(xlabel="iterations N", ylabel="last test accuracy in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.set_visible(bool(points or families))


def _draw_last(axes, x, group, number):
    last = group.last()
    marker = _MARKERS[group.config["model.name"]]
    axes.errorbar(
        x,
        100 * last.mean,
        100 * last.deviation,
        color=f"C{number}",
        marker=marker,
        capsize=3,
    )


def _as_text(label):
    """Not as mathematics; and Matplotlib leaves out what begins with `_`."""
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _figure(width: float, height: float) -> "Figure":
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _save(figure, path):
    with io.BytesIO() as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=150)
        path.write_bytes(file.getvalue())


def main() -> None:
    """Reads the arguments and draws."""
    parser = argparse.ArgumentParser(
        prog="python -m lrunet_jax.plot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", help="workdirs of train.py")
    parser.add_argument(
        "--out", required=True, help=f"the picture, with {' or '.join(FORMATS)}"
    )
    args = parser.parse_args()
    path = epath.Path(args.out).expanduser()
    allowed = f"a file name with {', '.join(FORMATS)}"
    require(path.suffix in FORMATS, "out", args.out, allowed)
    groups = read_groups(args.runs)
    try:
        plot_groups(groups, path)
    except (ImportError, OSError) as error:  # of gs:// without its library
        raise InputError(
            f"out is {args.out!r}, which can't be written: {in_one_line(error)}"
        ) from None


if __name__ == "__main__":
    run(main)
