"""Sheets: pictures with their captions, and a confusion matrix above them."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from lrunet_jax.figures.files import as_text, new_figure, save_figure

MOST_NAMES = 20  # on the axes of a matrix; more can't be read
_COLUMNS, _LINE = 6, 24  # pictures beside each other, letters in a line above one


def plot_pictures(
    pictures: Sequence[np.ndarray], captions: Sequence[str], path: epath.Path
) -> None:
    """Draws a sheet of pictures.

    Args:
      pictures: each (H, W, 1|3) uint8, of any size.
      captions: of each picture; may have several lines.
      path: where the sheet is written; its suffix is the format's.
    """
    figure = new_figure(width=10, height=_height_of(captions))
    _draw_pictures(figure, pictures, captions)
    save_figure(figure, path)


def plot_evaluation(
    confusion: np.ndarray,
    names: Sequence[str],
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    path: epath.Path,
) -> None:
    """Draws a confusion matrix, its colours shares of the true class, and a sheet.

    Args:
      confusion: (classes, classes), counts; rows are true, columns predicted. A row
        without images stays white.
      names: of the classes.
      pictures: each (H, W, 1|3) uint8; none, or the mistakes to show.
      captions: of each picture.
      title: of the sheet.
      path: where the figure is written; its suffix is the format's.
    """
    heights = [8.5, _height_of(captions) + 0.4]
    figure = new_figure(width=10, height=sum(heights))
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    matrix, sheet = parts
    _draw_confusion(matrix, confusion, names)
    sheet.suptitle(as_text(title))
    _draw_pictures(sheet, pictures, captions)
    save_figure(figure, path)


def _draw_confusion(part: Any, confusion: np.ndarray, names: Sequence[str]) -> None:
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_array(confusion / np.maximum(totals, 1))
    shares[totals[:, 0] == 0] = np.ma.masked
    axes = part.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    part.colorbar(drawn, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) > MOST_NAMES:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        return
    places = range(len(names))
    short = [as_text(textwrap.shorten(name, _LINE, placeholder="…")) for name in names]
    axes.set_xticks(places, short, rotation=90)
    axes.set_yticks(places, short)
    for row, column in np.argwhere(confusion):
        colour = "white" if shares[row, column] > 0.5 else "black"
        count = f"{confusion[row, column]}"
        style = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
        axes.text(column, row, count, **style)


def _draw_pictures(part, pictures, captions):
    if not pictures:
        return
    grid = part.subplots(_rows_of(captions), _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set_anchor("N")  # captions of a row on one height
    for axes, picture, caption in zip(grid.flat, pictures, captions, strict=False):
        shown = picture[..., 0] if picture.shape[-1] == 1 else picture
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
        axes.set_title(as_text("\n".join(_lines_of(caption))), fontsize=7)


def _lines_of(caption):
    """The lines of a caption, none longer than there is room for above a picture."""
    return [part for line in caption.split("\n") for part in textwrap.wrap(line, _LINE)]


def _rows_of(captions):
    return -(-len(captions) // _COLUMNS)


def _height_of(captions):
    """The height of a sheet in inches, by its longest caption."""
    longest = max((len(_lines_of(caption)) for caption in captions), default=0)
    return max(0.5, _rows_of(captions) * (1.6 + 0.13 * longest))
