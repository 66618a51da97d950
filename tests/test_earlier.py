"""What commit ef71c0e wrote opens, and a run of it goes on.

`tests/earlier` holds a run that was stopped in its second epoch, and a directory
converted from it; its lowering was forced.
"""

import dataclasses
import json
import pathlib
import tarfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import command
from etils import epath

import lrunet_jax
from configs import digits
from lrunet_jax.runs.checkpoints import array_fields
from lrunet_jax.runs.earlier import translate
from lrunet_jax.runs.restoring import restore_latest
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import create_train_state
from lrunet_jax.weights.loading import open_model, save_model

EARLIER = pathlib.Path(__file__).with_name("earlier")
FIELDS = {"layer_reuse": 2, "width_mult": 0.125, "drop": 0.2}


@pytest.fixture
def earlier(tmp_path):
    for path in EARLIER.iterdir():
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
    return tmp_path


def stored_state(workdir, step):
    """Its arrays by name, read by Orbax alone."""
    path = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), metadata)
        tree = checkpointer.restore(path, restore_args=numpy)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): leaf for path, leaf in leaves}


def test_the_data_are_of_the_kind_that_they_stand_for(earlier):
    config = json.loads((earlier / "run" / "config.json").read_text())
    assert config["model"]["lowering"] == "mapped"
    assert config["model"]["unroll"] == 2
    assert stored_state(earlier / "run", 26)["opt_state/1/1/count"] == 26
    facts = json.loads((earlier / "converted" / "model" / "metadata").read_text())
    assert facts["arguments"]["lowering"] == "mapped"
    assert "format" not in facts


def test_a_run_and_a_converted_directory_load(earlier):
    for path in (earlier / "run", earlier / "converted"):
        stored = open_model(path)
        assert stored.arguments == {"name": "lrunet", "num_classes": 10, **FIELDS}
        assert stored.accuracy == pytest.approx(35 / 360)
        model, variables = lrunet_jax.load(path)
        assert model.apply(variables, np.zeros((2, 32, 32, 1))).shape == (2, 10)
    by_name = stored_state(earlier / "run", 23)
    stored = open_model(earlier / "run").variables["params"]["stage1"]["dw"]["kernel"]
    np.testing.assert_array_equal(stored, by_name["params/stage1/dw/kernel"])


def test_they_are_converted_both_ways(earlier):
    for name in ("run", "converted"):
        save_model(open_model(earlier / name), str(earlier / f"{name}.pt"))
        save_model(open_model(earlier / f"{name}.pt"), str(earlier / f"{name}-again"))
        first, last = open_model(earlier / name), open_model(earlier / f"{name}-again")
        jax.tree.map(np.testing.assert_array_equal, last.variables, first.variables)


def test_the_commands_read_them(earlier):
    for name in ("run", "converted"):
        result = command("evaluate", earlier / name, "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["correct"] == 35
    result = command("results", earlier / "run")
    assert "| 9.72% |" in result.stdout, result.stderr
    result = command("plot", earlier / "run", f"--out={earlier / 'run.png'}")
    assert result.returncode == 0, result.stderr


def test_momentum_and_place_of_a_run_are_restored(earlier):
    model = lrunet_jax.create_model("lrunet", **FIELDS)
    fresh = create_train_state(
        model,
        create_optimizer(lambda epoch: 0.1),
        jax.random.key(1),
        (32, 32, 1),
        num_images=1437,
    )
    directory = epath.Path(earlier) / "run" / "checkpoints"
    found = restore_latest(directory, lambda *_: array_fields(fresh))
    assert not found.verified
    state, config = dataclasses.replace(fresh, **found.fields), found.config
    assert config["lowering"] == "cpu"
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    stored = stored_state(earlier / "run", 26)
    del stored["opt_state/1/1/count"]
    found = jax.tree_util.tree_leaves_with_path(array_fields(state))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in found
    }
    assert found.keys() == stored.keys()
    assert any(np.any(leaf) for name, leaf in stored.items() if "trace" in name)
    for name, leaf in stored.items():
        np.testing.assert_array_equal(found[name], leaf, name)


@pytest.mark.slow
def test_a_run_goes_on(earlier, capsys):
    workdir = earlier / "run"
    before = stored_state(workdir, 26)
    config = digits.get_config()
    config.update(epochs=3, learning_rate=0.0, weight_decay=0.0, momentum=0.0)
    config.update(schedule="piecewise", warmup_epochs=0.0, decay_epochs=(2,))
    config.model.update(FIELDS)
    state = lrunet_jax.train_and_evaluate(config, str(workdir))
    output = capsys.readouterr().out
    assert "resumed  step 26, epoch 2" in output
    assert "lowering: 'cpu' -> 'auto'" in output
    assert int(state.step) == 69
    # Without a learning rate the weights stay what they were.
    kernel = state.params["stage1"]["dw"]["kernel"]
    np.testing.assert_array_equal(kernel, before["params/stage1/dw/kernel"])
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["lowering"] == "auto"
    assert stored["model"].keys() == {"name", *FIELDS}


@pytest.mark.slow
def test_a_whole_run_of_300_epochs_opens(shared, optimised):
    path = shared / "runs" / "cifar10-lru1-paper"
    data_dir = f"--data_dir={shared / 'tfds'}"
    result = command("evaluate", path, data_dir, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["correct"] == 8339
    assert figures["accuracy"] == figures["recorded_accuracy"]


def test_the_momentum_of_a_checkpoint_is_kept():
    momentum = {"trace": {"kernel": 1}}
    tree = {"params": {"kernel": 2}, "opt_state": [{}, [momentum, {"count": 3}]]}
    assert translate(tree) == tree | {"opt_state": [{}, [momentum, {}]]}


@pytest.mark.parametrize(
    ("before", "after"),
    [("auto", "auto"), ("mapped", "cpu"), ("dense", "tpu"), ("xla", "xla")],
)
def test_a_lowering_leaves_the_model(before, after):
    model = {"name": "lrunet", "lowering": before, "unroll": 1, "drop": 0.5}
    kept = {"name": "lrunet", "drop": 0.5}
    config = {"model": model, "epochs": 3}
    assert translate(config) == {"lowering": after, "model": kept, "epochs": 3}
    assert translate({"arguments": model, "epoch": 3}) == {
        "arguments": kept,
        "epoch": 3,
    }


def test_a_run_from_before_there_was_freeze_froze_nothing():
    config = {"dataset": "digits", "model": {"name": "lrunet"}}
    assert translate(config)["freeze"] == ""
    assert translate(config)["validation"] == 0
    frozen = config | {"freeze": "all_but_classifier"}
    assert translate(frozen)["freeze"] == "all_but_classifier"


def test_what_has_today_s_form_stays_as_it_is():
    for stored in (
        {"lowering": "tpu", "model": {"name": "lrunet"}},
        {"format": 1, "arguments": {"name": "lrunet"}},
        {"opt_state": [{}, [{"trace": {}}, {}]]},
    ):
        assert translate(stored) == stored
