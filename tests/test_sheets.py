"""Sheets of pictures, and the figure of an evaluation."""

import re

import numpy as np
import pytest
import remote
from etils import epath
from PIL import Image

from lrunet_jax.errors import InputError
from lrunet_jax.figures import sheets
from lrunet_jax.figures.files import figure_path, written_to
from lrunet_jax.figures.sheets import plot_evaluation, plot_pictures


def texts(path):
    """What a figure says; Matplotlib draws letters as paths, and notes the text."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(), re.S)


def test_pictures_of_any_size_are_drawn_with_their_captions(tmp_path):
    path = epath.Path(tmp_path) / "sheet.svg"
    shapes = [(1, 1, 1), (5, 300, 3), (300, 5, 3), (32, 32, 1)] * 2
    pictures = [np.full(shape, 200, np.uint8) for shape in shapes]
    captions = [f"picture {k}" for k in range(6)]
    plot_pictures(pictures, [*captions, "_$\\frac$", "a\nb"], path)
    said = texts(path)
    assert {*captions, " _$\\frac$"} <= {text.replace("\\$", "$") for text in said}
    assert {"a", "b"} <= {line for text in said for line in text.split("\n")}
    assert path.read_text().count("<image") == len(pictures)


def test_a_long_caption_gets_several_lines():
    name = "a_name_without_a_single_place_to_break_it.png"
    lines = sheets._lines_of(f"{name}\nautomobile -> ship, 100%")
    assert max(map(len, lines)) <= 24
    assert "".join(lines[:2]) == name
    assert lines[-1].endswith("ship, 100%")


def figure_of(confusion, names, monkeypatch, pictures=(), captions=()):
    figures = []
    monkeypatch.setattr(sheets, "save_figure", lambda *given: figures.append(given))
    plot_evaluation(confusion, names, pictures, captions, "no mistakes", "path")
    ((figure, path),) = figures
    assert path == "path"
    figure.draw_without_rendering()
    return figure


def test_colours_of_a_matrix_are_shares_of_rows_and_empty_rows_are_white(monkeypatch):
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 50, 50]])
    figure = figure_of(confusion, ["a", "_b", "$c$"], monkeypatch)
    matrix = figure.axes[0]
    shares = matrix.images[0].get_array()
    assert shares.mask.tolist() == [[False] * 3, [True] * 3, [False] * 3]
    np.testing.assert_array_equal(shares[[0, 2]], [[0.75, 0.25, 0], [0, 0.5, 0.5]])
    counts = {text.get_position(): text.get_text() for text in matrix.texts}
    assert counts == {(0, 0): "3", (1, 0): "1", (1, 2): "50", (2, 2): "50"}
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted", "true")


@pytest.mark.parametrize(("classes", "named"), [(20, True), (21, False)])
def test_a_matrix_names_at_most_twenty_classes(classes, named, monkeypatch):
    names = [f"class {k}" for k in range(classes)]
    figure = figure_of(np.eye(classes, dtype=int), names, monkeypatch)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert ([label for label in labels if label in names] == names) == named


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_an_evaluation_is_drawn_whatever_the_mistakes(count, suffix, tmp_path):
    path = epath.Path(tmp_path) / f"figure{suffix}"
    pictures, captions = [np.zeros((8, 8, 1), np.uint8)] * count, ["a -> b"] * count
    plot_evaluation(np.eye(3, dtype=int), "abc", pictures, captions, "title", path)
    first = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(first)


def test_figures_go_to_remote_storage():
    path = figure_path("plot", "standin://bucket/sheet.png")
    plot_pictures([np.zeros((4, 4, 3), np.uint8)], ["black"], path)
    with Image.open(path.open("rb")) as image:
        assert image.format == "PNG"
    remote.FILES.clear()


def test_a_figure_that_cannot_be_written_gets_one_line(tmp_path):
    for path in ("a.bmp", "a", "a.PNG"):
        with pytest.raises(InputError, match=f"^plot is '{path}'; it must be a file"):
            figure_path("plot", path)
    with pytest.raises(InputError, match="must be in a directory that is there"):
        figure_path("plot", str(tmp_path / "nowhere" / "a.png"))
    path = epath.Path(tmp_path / "nowhere" / "a.png")
    message = r"^plot is 'given', which can't be written: FileNotFoundError"
    with pytest.raises(InputError, match=message), written_to("plot", "given"):
        plot_pictures([np.zeros((4, 4, 3), np.uint8)], ["black"], path)
