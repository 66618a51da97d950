"""Images held out of the training set: the best epoch is chosen on them."""

import json

import jax
import pytest
from conftest import command, train_command
from tiny import FLAG

from lrunet_jax.runs.record import read_lines
from lrunet_jax.runs.restoring import steps_in
from lrunet_jax.train import loop
from lrunet_jax.weights.loading import open_model

pytestmark = pytest.mark.usefixtures("shallow")

SMALL = (FLAG, "--config.batch_size=256", "--config.validation=157")


@pytest.fixture
def accuracies(monkeypatch):
    """What evaluations find: given accuracies on held out images, by the epoch.

    On the test set it is a hundredth of the epoch that the weights are of.
    """
    given = {1: 0.5, 2: 0.75, 3: 0.25, 4: 0.5}
    seen = {}  # by the epoch's number a sum of its weights

    def evaluate(state, split, name):
        assert len(split.labels) == {"validation": 157, "test": 360}[name]
        weights = float(sum(abs(leaf).sum() for leaf in jax.tree.leaves(state.params)))
        if name == "validation":
            epoch = int(state.epoch) + 1
            seen[epoch] = weights
            return {"validation_loss": 1.0, "validation_accuracy": given[epoch]}
        (epoch,) = (number for number, others in seen.items() if others == weights)
        return {"test_loss": 2.0, "test_accuracy": epoch / 100}

    monkeypatch.setattr(loop, "compile_evaluation", lambda *_: (evaluate, 0))
    return given


@pytest.mark.slow
def test_the_best_epoch_on_them_is_tested_at_the_end(accuracies, tmp_path):
    flags = (*SMALL, f"--workdir={tmp_path / 'run'}")
    result = train_command(*flags, "--config.epochs=3")
    assert result.returncode == 0, result.stderr
    lines = read_lines(tmp_path / "run")
    assert [line["validation_accuracy"] for line in lines] == [0.5, 0.75, 0.25]
    assert ["test_accuracy" in line for line in lines] == [False, False, True]
    assert lines[-1]["best_epoch"] == 2
    assert lines[-1]["best_test_accuracy"] == 0.02
    assert lines[-1]["test_accuracy"] == 0.03
    assert "data     digits: 1,280 training, 157 held out and 360 test" in result.stdout
    assert "best validation accuracy 75.00%, epoch 2: " in result.stdout
    assert "chosen on the test set" not in result.stdout
    tested = "test accuracy 2.00% of the best epoch, 3.00% of the last\n"
    assert tested in result.stdout
    assert steps_in(tmp_path / "run" / "checkpoints") == [10, 15]
    assert open_model(tmp_path / "run").epoch == 1  # the best, counted from 0
    (row,) = json.loads(command("results", "--json", str(tmp_path / "run")).stdout)
    assert (row["best"], row["last"]) == (0.02, 0.03)
    assert row["best_chosen_on"] == "validation"
    assert "validation set" in command("results", str(tmp_path / "run")).stdout
    # Longer, it is tested once more, at its new end.
    again = train_command(*flags, "--config.epochs=4")
    assert again.returncode == 0, again.stderr
    assert read_lines(tmp_path / "run")[-1]["best_epoch"] == 2


@pytest.mark.slow
def test_without_them_it_is_said_that_the_test_set_chose(tmp_path):
    flags = (f"--workdir={tmp_path / 'run'}", "--config.epochs=1", *SMALL)
    result = train_command(*flags, "--config.validation=0")
    assert result.returncode == 0, result.stderr
    assert " (chosen on the test set), epoch 1: " in result.stdout
    (row,) = json.loads(command("results", "--json", str(tmp_path / "run")).stdout)
    assert row["best_chosen_on"] == "test"


@pytest.mark.usefixtures("accuracies")
def test_a_change_of_what_is_held_out_is_refused(tmp_path):
    flags = (*SMALL, f"--workdir={tmp_path / 'run'}")
    trained = train_command(*flags, "--config.epochs=1")
    assert trained.returncode == 0, trained.stderr
    for flag, message in (
        ("--config.validation=0.1", "validation is 0.1, but the run in "),
        ("--config.split_seed=1", "split_seed is 1, but the run in "),
    ):
        result = train_command(*flags, "--config.epochs=2", flag)
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {message}")


@pytest.mark.usefixtures("accuracies")
def test_a_run_that_is_not_at_its_end_has_no_result_yet(tmp_path):
    run = tmp_path / "run"
    train_command(*SMALL, f"--workdir={run}", "--config.epochs=1")
    line = json.loads((run / "metrics.jsonl").read_text())
    kept = {name: value for name, value in line.items() if "test_" not in name}
    (run / "metrics.jsonl").write_text(json.dumps(kept) + "\n")
    result = command("results", str(run))
    assert result.returncode == 2
    left_out, error = result.stderr.splitlines()
    assert left_out == f"{run} is left out: not tested yet (which is at the end)"
    assert error == f"error: runs are {str(run)!r}, ...; one must have been tested"


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_does_not_keep_a_run_from_its_end(
    accuracies, tmp_path
):
    run = tmp_path / "run"
    trained = train_command(*SMALL, f"--workdir={run}", "--config.epochs=3")
    assert trained.returncode == 0, trained.stderr
    (run / "checkpoints" / "10" / "config" / "metadata").write_text("x")
    again = train_command(*SMALL, f"--workdir={run}", "--config.epochs=4")
    assert again.returncode == 0, again.stderr
    last = read_lines(run)[-1]
    assert (last["epoch"], last["best_epoch"]) == (4, 4)
    assert last["best_test_accuracy"] == last["test_accuracy"] == 0.04
