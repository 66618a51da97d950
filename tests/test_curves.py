"""Pictures of runs."""

import pytest
from conftest import command
from etils import epath

from lrunet_jax.runs.curves import Reference, plot_groups, plot_run
from lrunet_jax.runs.groups import read_groups

FIRST_BYTES = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def test_curves_are_drawn_from_any_lines(tmp_path):
    path = epath.Path(tmp_path) / "curves.png"
    line = {"step": 10, "epoch": 1, "train_loss": 0.5, "train_accuracy": 0.5}
    tested = line | {"epoch": 2, "test_loss": 0.25, "test_accuracy": 0.5}
    for lines in ([], [line], [line, tested]):
        plot_run(lines, path)
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
        ("nowhere/runs.png", "which can't be written"),
    ],
)
def test_a_picture_that_cannot_be_written_gets_one_line(
    make_run, tmp_path, out, message
):
    result = command("plot", make_run("a", [0.5]), f"--out={tmp_path / out}")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
