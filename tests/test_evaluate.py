"""Evaluation: exact counts, full precision, and the command."""

import json
import re

import jax
import numpy as np
import pytest
from conftest import command, needs_torch, torch

from lrunet_jax import create_model, ops
from lrunet_jax.data import Split
from lrunet_jax.errors import InputError
from lrunet_jax.train.evaluation import evaluate
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.stored_model import choose_dataset

if torch is not None:
    from lrunet_jax.weights.torch_models import create_torch_model


def tiny(name="lrunet", **arguments):
    defaults = {"lrunet": {"layer_reuse": 2, "width_mult": 0.125}}.get(name, {})
    model = create_model(name, **{**defaults, **arguments})
    images = np.zeros((1, 32, 32, 1), np.float32)
    return model, jax.jit(model.init)(jax.random.key(0), images)


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
    assert choose_dataset(stored) == "cifar10"
    assert choose_dataset(stored, "cifar10") == "cifar10"
    for dataset, reason in (
        ("cifar100", "of 10 classes and images of 3 channels.* has 100 and 3"),
        ("fashion_mnist", "cifar10-lru1; fashion_mnist has 10 and 1"),
        ("cifar11", "did you mean 'cifar10'"),
    ):
        with pytest.raises(InputError, match=reason):
            choose_dataset(stored, dataset)
    with pytest.raises(InputError, match="does not say what it was trained on"):
        choose_dataset(stored._replace(dataset=""))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.t7",), "path is 'missing.t7'; it must be a PyTorch file, a conv"),
        (("x.t7", "--batch_size=0"), "batch_size is 0; it must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message):
    result = command("evaluate", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
