"""Evaluation: exact counts, full precision, and the command."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from conftest import command
from oracle import create_torch_model, needs_torch, torch
from stored import store
from weights import random_variables

from lrunet_jax import create_model, ops
from lrunet_jax import evaluate as evaluation
from lrunet_jax.data import Split
from lrunet_jax.errors import InputError
from lrunet_jax.train.evaluation import evaluate
from lrunet_jax.weights.loading import open_model, save_model
from lrunet_jax.weights.stored_model import load_test_set


def tiny(name="lrunet", **arguments):
    defaults = {"lrunet": {"layer_reuse": 2, "width_mult": 0.125}}.get(name, {})
    model = create_model(name, **{**defaults, **arguments})
    return model, random_variables(model, 1)


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ops.LOWERINGS)
@pytest.mark.parametrize("name", ["lrunet", "shufflenet"])
def test_every_product_is_at_the_highest_precision(name, lowering, monkeypatch):
    model, variables = tiny(name)
    split = Split(np.zeros((8, 32, 32, 1), np.uint8), np.zeros(8, np.int32))

    class SeenError(Exception):
        """Carries the program, which need not be compiled."""

    def spy(lowered):
        raise SeenError(lowered.as_text())

    monkeypatch.setattr(jax.stages.Lowered, "compile", spy)
    with ops.lowering(lowering), pytest.raises(SeenError) as seen:
        evaluate(model, variables, split, batch_size=4)
    (program,) = seen.value.args
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*", program)
    assert len(products) > 4
    for product in products:
        assert product.count("HIGHEST") == 2, product
        assert "DEFAULT" not in product


@needs_torch
def test_every_image_counts_once_whatever_the_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (37, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, 37).astype(np.int32)
    model, variables = tiny()
    split = Split(images, labels)
    whole = evaluate(model, variables, split, 37).logits
    assert whole.shape == (37, 10)
    for batch_size in (1, 16, 50):
        result = evaluate(model, variables, split, batch_size)
        # The order of float32 sums depends on the batch.
        np.testing.assert_allclose(result.logits, whole, rtol=0, atol=1e-5)
    result = evaluate(model, variables, split, 16)
    right = np.argmax(result.logits, -1) == labels
    for label in range(10):
        assert result.total[label] == np.sum(labels == label)
        assert result.correct[label] == np.sum(right & (labels == label))
    losses = torch.nn.functional.cross_entropy(
        torch.from_numpy(result.logits), torch.from_numpy(labels).long()
    )
    assert result.loss == pytest.approx(float(losses), rel=1e-6)


def test_the_data_set_must_fit_the_network(shared):
    stored = open_model(shared / "checkpoints" / "cifar10-lru1-ckpt-08391.t7")
    load = functools.partial(load_test_set, data_dir=str(shared / "tfds"))
    for name in ("", "cifar10"):
        dataset, classes, split = load(stored, name)
        assert (dataset, classes[3], len(split.labels)) == ("cifar10", "cat", 10_000)
    for name, reason in (
        ("cifar100", "of 10 classes, like cifar10-lru1; cifar100 has 100"),
        ("fashion_mnist", "of 3 channels, like cifar10-lru1; fashion_mnist has 1"),
        ("cifar11", "did you mean 'cifar10'"),
    ):
        with pytest.raises(InputError, match=reason):
            load(stored, name)
    with pytest.raises(InputError, match="does not say what it was trained on"):
        load(stored._replace(dataset=""))
    with pytest.raises(InputError, match="trained on arrays, which only Python can"):
        load(stored._replace(dataset="arrays"))


@pytest.mark.slow
def test_the_command_on_a_published_file(shared, optimised):
    path = shared / "checkpoints" / "fashionmnist-lru1-ckpt-09117.t7"
    result = command("evaluate", path, f"--data_dir={shared / 'tfds'}", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert (figures["correct"], figures["total"]) == (9117, 10_000)
    assert figures["accuracy"] == figures["recorded_accuracy"] == 0.9117
    assert figures["dataset"] == "fashion_mnist"
    assert len(figures["per_class"]) == 10
    assert "top5" not in figures
    confusion = np.array(figures["confusion"])
    assert confusion.sum(axis=1).tolist() == [1000] * 10
    assert np.trace(confusion) == 9117
    assert 0 < figures["calibration_error"] < 0.1
    assert sum(figures["per_class"].values()) == pytest.approx(9.117)
    assert figures["images_per_second"] > 0


@needs_torch
def test_the_command_on_embedded_data(tmp_path):
    oracle = create_torch_model("mobilenet", 1, 10, 0.1)
    torch.save(oracle.state_dict(), tmp_path / "mine.pt")
    result = command(
        "evaluate", tmp_path / "mine.pt", "--dataset=digits", "--batch_size=100"
    )
    assert result.returncode == 0, result.stderr
    line = "network   mine: mobilenet (num_classes=10, width_mult=0.1)\n"
    assert result.stdout.startswith(line)
    assert re.search(r"accuracy  \d+\.\d\d% \(\d+ of 360\)", result.stdout)
    assert "recorded" not in result.stdout


def few_images(classes, labels, monkeypatch):
    """Makes the command evaluate on random images of these labels."""
    names = tuple(f"class {k}" for k in range(classes))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 1))
    split = Split(images.astype(np.uint8), np.array(labels, np.int32))
    few = lambda *_: ("few", names, split)
    monkeypatch.setattr(evaluation, "load_test_set", few)
    return split


def strictly(text):
    """What JSON says, which knows no NaN."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("classes", [10, 11])
def test_more_than_ten_classes_have_a_top_five(classes, tmp_path, monkeypatch):
    stored = store(tmp_path / "net", classes=classes)
    split = few_images(classes, [*range(classes)] * 2, monkeypatch)
    result = command("evaluate", tmp_path / "net", "--json")
    assert result.returncode == 0, result.stderr
    figures = strictly(result.stdout)
    found = evaluate(stored.create_model(), stored.variables, split, 256)
    rows = [list(map(float, row)) for row in found.logits]
    # How many classes are before the label: those of larger logits, and earlier ones.
    before = [
        sum((-row[k], k) < (-row[label], label) for k in range(classes))
        for row, label in zip(rows, split.labels, strict=True)
    ]
    assert figures["accuracy"] == np.mean([place < 1 for place in before])
    top5 = np.mean([place < 5 for place in before]) if classes > 10 else None
    assert figures.get("top5") == top5
    lines = command("evaluate", tmp_path / "net").stdout
    assert ("\ntop-5     " in lines) == (classes == 11)


def test_classes_without_images_have_no_accuracy(tmp_path, monkeypatch):
    store(tmp_path / "net", classes=3)
    few_images(3, [0, 0, 2], monkeypatch)
    arguments = ("evaluate", tmp_path / "net", f"--plot={tmp_path / 'a.svg'}")
    result = command(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    figures = strictly(result.stdout)
    assert figures["per_class"]["class 1"] is None
    confusion = np.array(figures["confusion"])
    assert confusion.sum(axis=1).tolist() == [2, 0, 1]
    assert np.trace(confusion) == figures["correct"]
    result = command(*arguments)
    assert "\n        no images  class 1\n" in result.stdout
    assert re.search(r"^ECE       \d+\.\d\d% \(", result.stdout, re.M)
    drawn = (tmp_path / "a.svg").read_text()
    for line in ("<!-- predicted -->", "<!-- class 1 -->", " -&gt; class "):
        assert line in drawn or line.replace("&gt;", ">") in drawn
    assert drawn.count("<image") >= 1 + 3 - figures["correct"]


def test_weights_that_are_not_finite_give_no_number(tmp_path, monkeypatch):
    stored = store(tmp_path / "fine", classes=11)
    variables = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), stored.variables)
    save_model(stored._replace(variables=variables), str(tmp_path / "net"))
    few_images(11, [0, 3], monkeypatch)
    arguments = ("evaluate", tmp_path / "net", "--allow_nonfinite")
    result = command(*arguments, "--json", f"--plot={tmp_path / 'a.png'}")
    assert (result.returncode, result.stderr) == (0, "")
    figures = strictly(result.stdout)
    assert (figures["loss"], figures["calibration_error"]) == (None, None)
    # As for the accuracy, a NaN is the largest, and the first of them is chosen.
    assert (figures["correct"], figures["top5"]) == (1, 1.0)
    result = command(*arguments)
    assert "loss      nan\nECE       nan% (" in result.stdout


def test_a_test_set_without_mistakes_is_drawn(tmp_path, monkeypatch):
    stored = store(tmp_path / "net", classes=3)
    split = few_images(3, [0, 0, 0], monkeypatch)
    found = evaluate(stored.create_model(), stored.variables, split, 256).logits
    split.labels[:] = np.argmax(found, -1)
    result = command("evaluate", tmp_path / "net", f"--plot={tmp_path / 'a.svg'}")
    assert (result.returncode, result.stderr) == (0, "")
    assert "<!-- no mistakes -->" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.t7", "--plot=a.bmp"), "plot is 'a.bmp'; it must be a file name with .pdf"),
        (("missing.t7",), "path is 'missing.t7'; it must be a PyTorch file, a conv"),
        (("x.t7", "--batch_size=0"), "batch_size is 0; it must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message):
    result = command("evaluate", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
