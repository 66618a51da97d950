"""The published accuracies, to the image."""

import json

import pytest
from conftest import command
from oracle import create_torch_model, needs_torch, torch

from lrunet_jax.compare import compare, compare_torch
from lrunet_jax.data import Split, load_split
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.published import PUBLISHED


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_all_eighteen_give_their_published_accuracy_to_the_image(shared):
    paths = sorted(shared.glob("checkpoints/*.t7"))
    result = command("compare", *paths, f"--data_dir={shared / 'tfds'}", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {row["name"] for row in rows} == PUBLISHED.keys()
    for row in rows:
        assert row["difference"] == 0, row
        assert row["total"] == 10_000
        assert row["correct"] == PUBLISHED[row["name"]].correct
        assert row["published"] == row["correct"] / 10_000
        assert row["dataset"] == PUBLISHED[row["name"]].dataset
        assert row["params"] > row["conv_params"] > 0


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize(
    "name",
    ["fashionmnist-lru1-ckpt-09117.t7", "fmnist-shufflenetv2-025x-ckpt-09342.t7"],
)
def test_pytorch_gives_the_same_answers(name, shared):
    stored = open_model(shared / "checkpoints" / name)
    whole = load_split("fashion_mnist", "test", shared / "tfds")
    split = Split(whole.images[:2000], whole.labels[:2000])
    found = compare(stored, "fashion_mnist", split, 256)
    theirs = compare_torch(stored, split, 256, found["logits"])
    assert 1700 < theirs["torch_correct"] == found["correct"]
    # float32 logits of either side move by 1e-5 with the order of their sums.
    assert 0 < theirs["logit_difference"] < 1e-4
    assert theirs["torch_images_per_second"] > 0


@pytest.mark.slow
@needs_torch
def test_the_table_has_a_row_a_network(tmp_path):
    for width in (0.1, 0.2):
        oracle = create_torch_model("mobilenet", 1, 10, width)
        torch.save(
            {"net": oracle.state_dict(), "acc": 12.5, "epoch": 1},
            tmp_path / f"{width}.pt",
        )
    paths = (tmp_path / "0.1.pt", tmp_path / "0.2.pt")
    table = command("compare", *paths, "--dataset=digits", "--torch").stdout
    assert table.startswith("| checkpoint")
    assert table.count("| 12.50%") == 2
    assert table.count("\n") == 4
    printed = command("compare", *paths, "--dataset=digits", "--torch", "--json").stdout
    for row in json.loads(printed):
        assert row["published"] == 0.125
        assert row["torch_correct"] == row["correct"] == row["difference"] + 45
        assert (row["total"], row["dataset"]) == (360, "digits")
        assert 0 <= row["logit_difference"] < 1e-4
        assert row["torch_images_per_second"] > 0


def test_an_unknown_data_set_is_refused(shared):
    path = shared / "checkpoints" / "fashionmnist-lru1-ckpt-09117.t7"
    result = command("compare", path, "--dataset=nonsense")
    assert result.returncode == 2
    assert result.stderr.startswith("error: dataset is 'nonsense', which can't be")


def test_a_mistake_gets_one_line(shared):
    path = shared / "checkpoints" / "fashionmnist-lru1-ckpt-09117.t7"
    result = command("compare", path, "nothing", f"--data_dir={shared / 'tfds'}")
    assert result.returncode == 2
    assert result.stderr.startswith("error: path is 'nothing'; it must be")
    assert result.stderr.count("\n") == 1
