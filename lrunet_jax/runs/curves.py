"""Pictures of runs: curves, and accuracy against parameters and iterations."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from lrunet_jax.figures.files import as_text, new_figure, save_figure
from lrunet_jax.models import list_models
from lrunet_jax.runs.groups import Group, mean_curve
from lrunet_jax.runs.record import (
    Line,
    accuracy_of,
    chosen_on,
    is_evaluated,
    value_on,
)

_HOLLOW = {"color": "0.5", "fillstyle": "none"}
# The values of an epoch, by panel and by the style of their line.
_CURVES: dict[str, dict[str, Any]] = {
    "loss": {
        "training": lambda line: line.get("train_loss"),
        "evaluation": lambda line: (
            value_on(chosen_on(line), "loss", line)
            if f"{chosen_on(line)}_loss" in line
            else None
        ),
    },
    "accuracy in %": {
        "training": lambda line: 100 * line["train_accuracy"],
        "evaluation": lambda line: (
            100 * accuracy_of(line) if is_evaluated(line) else None
        ),
    },
}
_STYLES = {"training": "--", "evaluation": "-"}


class Reference(NamedTuple):
    """A result to compare runs with, of a network that was trained elsewhere.

    Attributes:
      model: its name.
      dataset: that it was trained and tested on.
      params: its trainable parameters.
      layer_reuse: its iterations N; 0 for a model that has none.
      accuracy: on the test set, a fraction.
    """

    model: str
    dataset: str
    params: int
    layer_reuse: int
    accuracy: float


def plot_run(lines: Sequence[Line], path: epath.Path) -> None:
    """Draws loss and accuracy by epoch, training and test.

    Args:
      lines: the run's record.
      path: where the picture is written; its suffix is the format's.
    """
    figure = new_figure(width=9, height=3.6)
    _draw_curves(figure.subplots(1, 2), {"": [lines]})
    save_figure(figure, path)


def plot_groups(
    groups: Sequence[Group], path: epath.Path, published: Sequence[Reference] = ()
) -> None:
    """Draws curves and comparisons, four panels for each data set.

    Args:
      groups: the groups of runs to draw.
      path: where the picture is written; its suffix is the format's.
      published: results that are drawn beside those of the runs, as hollow grey
        markers.
    """
    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        by_dataset.setdefault(group.config["dataset"], []).append(group)
    figure = new_figure(width=10, height=7.5 * len(by_dataset))
    parts = figure.subfigures(len(by_dataset), 1, squeeze=False)
    for (part,), (dataset, of_it) in zip(parts, by_dataset.items(), strict=True):
        part.suptitle(dataset)
        curves, comparisons = part.subplots(2, 2)
        _draw_curves(curves, {group.label: group.records() for group in of_it})
        beside = [entry for entry in published if entry.dataset == dataset]
        _draw_against_parameters(comparisons[0], of_it, beside)
        _draw_against_iterations(comparisons[1], of_it, beside)
    save_figure(figure, path)


def _draw_curves(
    panels: Sequence[Any], records: Mapping[str, Sequence[Sequence[Line]]]
) -> None:
    """Draws the mean over the runs of each label, in a band of one deviation."""
    for axes, (name, values) in zip(panels, _CURVES.items(), strict=True):
        drawn = []
        for number, (label, of_label) in enumerate(records.items()):
            for split, value in values.items():
                curve = mean_curve(of_label, value)
                means = [point.mean for point in curve.values()]
                drawn += means
                axes.plot(
                    curve.keys(),
                    means,
                    color=f"C{number}",
                    linestyle=_STYLES[split],
                    marker="." if len(curve) < 30 else "",
                    label=as_text(label) if split == "evaluation" else "",
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
        if name == "loss":
            _fit_losses(axes, drawn)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()


def _fit_losses(axes, losses):
    """A logarithmic axis for losses that span more than a decade."""
    positive = [loss for loss in losses if 0 < loss < math.inf]
    if positive and max(positive) > 10 * min(positive):
        axes.set_yscale("log")
        # By the curves alone: bands may reach down to 0, and so may a curve.
        axes.set_ylim(min(positive) / 1.25, max(positive) * 1.25)


def _draw_against_parameters(axes, groups, published):
    for number, group in enumerate(groups):
        _draw_last(axes, group.costs()["params"], group, number)
    for entry in published:
        marker = _marker(entry.model)
        axes.plot(entry.params, 100 * entry.accuracy, marker, **_HOLLOW)
    shown = {group.config["model.name"] for group in groups}
    for name in sorted(shown | {entry.model for entry in published}):
        axes.plot([], [], _marker(name), **_HOLLOW, label=name)
    axes.set(xlabel="parameters", ylabel="last test accuracy in %")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(title="hollow: published" if published else "")


def _draw_against_iterations(axes, groups, published):
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
        (entry.layer_reuse, 100 * entry.accuracy)
        for entry in published
        if entry.layer_reuse
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o:", **_HOLLOW, label="published")
        axes.legend()
    axes.set(xlabel="iterations N", ylabel="last test accuracy in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.set_visible(bool(points or families))


def _draw_last(axes, x, group, number):
    last = group.last()
    marker = _marker(group.config["model.name"])
    axes.errorbar(
        x,
        100 * last.mean,
        100 * last.deviation,
        color=f"C{number}",
        marker=marker,
        capsize=3,
    )


def _marker(model):
    """The marker of a model: one of ten symbols, by turns."""
    return dict(zip(list_models(), itertools.cycle("osD^v<>Phd"), strict=False))[model]
