"""Prediction: the command, and the function in Python."""

import io
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import command
from flax import linen as nn
from PIL import Image
from stored import store

import lrunet_jax
from lrunet_jax import predict
from lrunet_jax.errors import InputError

NAMES = ("cat", "dog", "a bird", "nothing")
TRACED = []


class Means(nn.Module):
    """Takes the mean of each channel for the logit of its class."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images, train):
        TRACED.append((images.shape, jax.config.jax_default_matmul_precision))
        assert not train
        return jnp.mean(images, (1, 2))


def test_probabilities_by_hand():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1, :, :, 0] = 255
    found = lrunet_jax.classify(Means(), {}, images)
    assert (found.dtype, found.shape) == (np.float32, (2, 3))
    share = np.e / (np.e + 2)
    expected = [[1 / 3] * 3, [share, (1 - share) / 2, (1 - share) / 2]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # of float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_floats_are_what_uint8_is_by_255(dtype, kind):
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3) * 5
    fractions = (images / 255).astype(dtype)
    found = lrunet_jax.classify(Means(), {}, kind(fractions))
    expected = lrunet_jax.classify(Means(), {}, images)
    tolerance = 1e-6 if dtype in ("float32", "float64") else 4e-3  # half a last place
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_equal_models_and_shapes_are_traced_once_at_the_highest_precision():
    TRACED.clear()
    for _ in range(3):
        lrunet_jax.classify(Means(), {}, np.zeros((2, 6, 5, 3), np.uint8))
        lrunet_jax.classify(Means(), {}, np.zeros((1, 6, 5, 3), np.uint8))
    assert TRACED == [((2, 6, 5, 3), "highest"), ((1, 6, 5, 3), "highest")]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\); .* \(B, H, W, channels\)"),
        (np.zeros((1, 0, 4, 3)), r"shape \(1, 0, 4, 3\); it must be"),
        (np.zeros((1, 4, 4, 3), int), "int64; they must be uint8, or floats in"),
        (np.zeros((1, 4, 4, 3), bool), "bool; they must be uint8, or floats in"),
        (np.full((1, 4, 4, 3), 255.0), "values from 0 to 255; they must be uint8"),
        (np.full((1, 4, 4, 3), -0.5), "values from -0.5 to 0; they must be uint8"),
        (np.full((1, 4, 4, 3), np.nan), "values from nan to nan; they must be uint8"),
        ([np.zeros((4, 4, 3)), np.zeros((4, 5, 3))], "of several shapes; they must be"),
        ("cat.png", r"shape \(\); it must be"),
    ],
)
def test_other_images_are_refused_in_one_line(images, message):
    with pytest.raises(InputError, match=message) as caught:
        lrunet_jax.classify(Means(), {}, images)
    assert "\n" not in str(caught.value)


def test_a_network_says_how_many_channels_it_takes(tmp_path):
    store(tmp_path / "net")
    model, variables = lrunet_jax.load(tmp_path / "net")
    with pytest.raises(InputError, match=r"\(1, 32, 32, 3\); .* \(B, H, W, 1\)"):
        lrunet_jax.classify(model, variables, np.zeros((1, 32, 32, 3), np.uint8))
    assert lrunet_jax.classify(model, variables, np.zeros((0, 32, 32, 1))).shape == (
        0,
        10,
    )


@pytest.fixture
def network(tmp_path):
    """A network of four classes and grey images of 28 x 36."""
    path = tmp_path / "net"
    store(path, classes=4, class_names=NAMES, image_size=(28, 36))
    return path


@pytest.fixture
def images(tmp_path):
    """A directory of five pictures of several sizes and kinds."""
    directory = tmp_path / "pictures"
    directory.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in {
        "b.png": (28, 36),
        "a.png": (28, 36),
        "c d.bmp": (60, 20, 3),
        "e.webp": (5, 7, 3),
        "f.JPG": (300, 400, 3),
    }.items():
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(directory / name)
    (directory / "notes.txt").write_text("no picture")
    return directory


def expected_of(network, *paths):
    """The probabilities of grey pictures that need not be resized, in NumPy."""
    model, variables = lrunet_jax.load(network)
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])[..., None]
    with jax.default_matmul_precision("highest"):
        logits = model.apply(variables, pixels.astype(np.float32) / 255, train=False)
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(-1, keepdims=True)


def test_files_get_a_line_each(network, images):
    paths = [images / "b.png", images / "a.png"]
    result = command("predict", network, *paths, "--top=2")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    shares = expected_of(network, *paths)
    for line, path, row in zip(lines, paths, shares, strict=True):
        first, second = np.argsort(-row)[:2]
        said = [f"{NAMES[k]} {row[k]:.1%}" for k in (first, second)]
        assert line == f"{path}  {', '.join(said)}"


def test_json_has_names_labels_and_probabilities(network, images):
    paths = [images / "a.png", images / "b.png"]
    result = command("predict", network, *paths, "--json", "--top=99")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert [row["path"] for row in found] == [*map(str, paths)]
    for row, shares in zip(found, expected_of(network, *paths), strict=True):
        assert [guess["label"] for guess in row["predictions"]] == [
            *map(int, np.argsort(-shares))
        ]
        for guess in row["predictions"]:
            assert guess["class"] == NAMES[guess["label"]]
            # The order of float32 sums depends on the batch.
            assert guess["probability"] == pytest.approx(
                shares[guess["label"]], abs=1e-5
            )


def test_directories_lists_and_batches_give_the_same(network, images, monkeypatch):
    names = ["a.png", "b.png", "c d.bmp", "e.webp", "f.JPG"]
    whole = command("predict", network, images).stdout
    assert [line.split("  ")[0] for line in whole.splitlines()] == [
        str(images / name) for name in names
    ]
    for batch in (2, 5):
        monkeypatch.setattr(predict, "_BATCH", batch)
        given = io.StringIO("".join(f"{images / name}\n\n" for name in names))
        monkeypatch.setattr(sys, "stdin", given)
        assert command("predict", network, "-").stdout == whole


def test_relative_paths_stay_relative(network, images):
    result = command("predict", network, "pictures/", cwd=images.parent)
    assert result.stdout.startswith("pictures/a.png  ")
    result = command("predict", network, "a.png", cwd=images)
    assert result.stdout.startswith("a.png  ")


def test_classes_without_names_are_numbered(tmp_path, images):
    store(tmp_path / "unknown", classes=12)
    arguments = (tmp_path / "unknown", images / "a.png")
    result = command("predict", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: unknown does not say how large the images were that it learned from; "
        "give their height and width with --image_size=S\n"
    )
    result = command("predict", *arguments, "--image_size=16", "--json", "--top=12")
    assert result.returncode == 0, result.stderr
    ((row),) = json.loads(result.stdout)
    assert {guess["class"] for guess in row["predictions"]} == {*map(str, range(12))}


def test_colours_and_greys_go_to_any_network(tmp_path, images):
    store(tmp_path / "colour", channels=3, image_size=(8, 8))
    result = command("predict", tmp_path / "colour", images, "--top=1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 5


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(network, images):
    (images / "broken.png").write_bytes(b"no picture")
    (images / "empty").mkdir()
    arguments = (images, images / "missing.png", images / "empty")
    result = command("predict", network, *arguments, "--json")
    assert result.returncode == 2
    assert len(json.loads(result.stdout)) == 5
    broken, missing, empty, last = result.stderr.splitlines()
    assert re.match(r"picture is '.*broken\.png', which can't be read: ", broken)
    assert re.match(r"picture is '.*missing\.png', which can't be read: ", missing)
    assert re.match(
        r"picture is '.*empty', a directory with none directly in it \(", empty
    )
    assert last == "error: 3 of 8 pictures can't be read, see above"


@pytest.mark.parametrize("name", ["broken.png", "missing.png", "empty", "a://b"])
def test_the_only_one_that_cannot_be_read_is_the_error(network, images, name):
    (images / "broken.png").write_bytes(b"no picture")
    (images / "empty").mkdir()
    path = name if "://" in name else images / name
    result = command("predict", network, path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: picture is '")
    assert result.stderr.count("\n") == 1


def test_an_empty_list_is_no_mistake(network, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    result = command("predict", network, "-", "--json", "--plot=none.png")
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


def test_a_sheet_has_the_first_pictures(network, images, tmp_path, monkeypatch):
    path = tmp_path / "sheet.svg"
    result = command("predict", network, images, f"--plot={path}")
    assert (result.returncode, result.stderr) == (0, "")
    assert path.read_text().count("<image") == 5
    best = result.stdout.splitlines()[0].split("  ")[1].split(", ")[0]
    assert best in path.read_text()
    monkeypatch.setattr(predict, "_DRAWN", 2)
    result = command("predict", network, images, f"--plot={path}")
    assert result.returncode == 0
    assert result.stderr == f"{path} has the first 2 of 5 pictures\n"
    assert path.read_text().count("<image") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top=0",), "top is 0; it must be at least 1"),
        (("--image_size=0",), "image_size is 0; it must be in [1, 16384]"),
        (("--plot=a.gif",), "plot is 'a.gif'; it must be a file name with .pdf, .png"),
        (("--plot=no/a.png",), "plot is 'no/a.png'; it must be in a directory that is"),
        (("--step=3",), "step is 3; it must be left out, as"),
    ],
)
def test_a_mistake_gets_one_line(network, images, arguments, message):
    result = command("predict", network, images / "a.png", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_published_networks_know_their_classes(shared, tmp_path):
    test_set = lrunet_jax.data.load_split("cifar10", "test", str(shared / "tfds"))
    names = lrunet_jax.data.dataset_info("cifar10").class_names
    for k in range(8):
        Image.fromarray(test_set.images[k]).save(tmp_path / f"{k}.png")
    path = shared / "checkpoints" / "cifar10-shufflenetv2-025x-ckpt-089310.t7"
    result = command("predict", path, tmp_path, "--json", "--top=1")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    right = [
        row["predictions"][0]["class"] == names[label]
        for row, label in zip(rows, test_set.labels, strict=False)
    ]
    assert sum(right) >= 7  # of 89 % of all
