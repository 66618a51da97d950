"""Pictures of runs."""

import math
import re

import numpy as np
import pytest
from conftest import command
from etils import epath
from PIL import Image

from lrunet_jax.figures.files import save_figure
from lrunet_jax.runs import curves
from lrunet_jax.runs.curves import Reference, plot_groups, plot_run
from lrunet_jax.runs.groups import read_groups

FIRST_BYTES = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def test_curves_are_drawn_from_any_lines(tmp_path):
    path = epath.Path(tmp_path) / "curves.png"
    line = {"step": 10, "epoch": 1, "train_loss": 0.5, "train_accuracy": 0.5}
    tested = line | {"epoch": 2, "test_loss": 0.25, "test_accuracy": 0.5}
    ink = []
    for lines in ([], [line], [line, tested], [line, tested, tested | {"epoch": 3}]):
        plot_run(lines, path)
        assert path.read_bytes().startswith(FIRST_BYTES["png"])
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        # Matplotlib's first colour, in which a run's curves are drawn.
        ink.append(np.sum(np.all(pixels == (0x1F, 0x77, 0xB4), axis=1)))
    assert ink[0] == 0  # axes without a curve
    assert 0 < ink[1] < ink[2] < ink[3]


def test_points_lie_where_their_epochs_and_values_are(tmp_path):
    path = epath.Path(tmp_path) / "curves.svg"
    line = {"step": 10, "epoch": 1, "train_loss": 2.0, "train_accuracy": 0.25}
    lines = [line, line | {"epoch": 2, "train_loss": 1.0, "train_accuracy": 0.75}]
    plot_run(lines, path)
    dashed = r'<path d="M ([\d. L\n-]+)"[^>]*dasharray[^>]*#1f77b4'
    losses, shares = re.findall(dashed, path.read_text())
    x1, loss1, x2, loss2 = map(float, re.findall(r"[\d.]+", losses))
    x3, share1, x4, share2 = map(float, re.findall(r"[\d.]+", shares))
    assert x1 < x2 < x3 < x4
    assert loss1 < loss2  # downwards in the picture
    assert share1 > share2


@pytest.mark.parametrize(
    ("training", "test", "scale"),
    [
        ([2.0, 0.3], [1.0, 0.21], "linear"),  # 9.5 times
        ([2.0, 0.3], [1.0, 0.19], "log"),  # 10.5 times, over both curves
        ([67.0, 1.0], [1.0, 1.0], "log"),
        ([67.0, 1.0], [0.0, 1.0], "log"),  # a loss of 0 has no place, and takes none
        ([67.0, -1.0], [0.5, math.nan], "log"),
        ([67.0, 0.5], [1.0, math.inf], "log"),
        ([0.0, 0.0], [-1.0, 0.0], "linear"),
        ([math.nan], [math.nan], "linear"),
    ],
)
def test_losses_of_more_than_a_decade_are_on_a_logarithmic_axis(
    training, test, scale, tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr(
        curves, "save_figure", lambda figure, path: figures.append((figure, path))
    )
    lines = [
        {"epoch": epoch, "train_loss": one, "test_loss": other, "train_accuracy": 0.5}
        for epoch, (one, other) in enumerate(zip(training, test, strict=True), start=1)
    ]
    plot_run(lines, epath.Path(tmp_path) / "curves.png")
    ((figure, path),) = figures
    losses, accuracies = figure.axes
    assert (losses.get_yscale(), accuracies.get_yscale()) == (scale, "linear")
    seen = [loss for loss in training + test if 0 < loss < math.inf]
    if scale == "log":  # all that can be seen, and little else
        low, high = losses.get_ylim()
        assert 0.7 * min(seen) < low < min(seen) < max(seen) < high < 1.4 * max(seen)
    save_figure(figure, path)  # without a warning, which would be an error
    assert path.read_bytes().startswith(FIRST_BYTES["png"])


def test_runs_published_numbers_and_iterations_are_in_the_picture(make_run, tmp_path):
    paths = [
        make_run(f"lru{n}-{seed}", [0.5, 0.6], **{"model.layer_reuse": n}, seed=seed)
        for n in (4, 8)
        for seed in (0, 1)
    ]
    path = epath.Path(tmp_path) / "runs.svg"
    published = [Reference("lrunet", "fashion_mnist", 130_250, 1, 0.9117)]
    groups = read_groups([*paths, make_run("cifar", [0.4], "cifar10")])
    plot_groups(groups, path, published)
    picture = path.read_text()
    for word in ("lru4", "lru8", "cifar", "fashion_mnist", "cifar10", "published"):
        assert f"<!-- {word} -->" in picture  # matplotlib says what it draws as paths
    assert picture.count("<!-- iterations N -->") == 2  # one a data set
    assert picture.count("<!-- hollow: published -->") == 1


def test_names_of_runs_are_no_mathematics(make_run, tmp_path):
    path = epath.Path(tmp_path) / "runs.svg"
    groups = read_groups(
        [make_run("$\\frac$", [0.5]), make_run("_b", [0.6], "cifar10")]
    )
    plot_groups(groups, path)
    assert "<!-- $\\frac$ -->" in path.read_text()
    assert "<!--  _b -->" in path.read_text()


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_command_writes_the_format_that_the_name_says(make_run, tmp_path, suffix):
    path = tmp_path / f"runs.{suffix}"
    result = command("plot", make_run("a", [0.5, 0.6]), f"--out={path}")
    assert result.returncode == 0, result.stderr
    assert path.read_bytes().startswith(FIRST_BYTES[suffix])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("runs.bmp", "it must be a file name with .pdf, .png, .svg"),
        ("runs", "it must be a file name with .pdf, .png, .svg"),
        ("nowhere/runs.png", "it must be in a directory that is there"),
    ],
)
def test_a_picture_that_cannot_be_written_gets_one_line(
    make_run, tmp_path, out, message
):
    result = command("plot", make_run("a", [0.5]), f"--out={tmp_path / out}")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
