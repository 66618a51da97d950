"""Whole runs: what they leave behind, how they stop, and how they go on."""

import io
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
import tiny
from conftest import ROOT, few_blocks, on_eight_devices, process, train_command
from PIL import Image
from tiny import tiny_config

from configs import lrunet
from lrunet_jax.errors import DivergedError, InputError
from lrunet_jax.models import LruNet
from lrunet_jax.train.loop import train_and_evaluate

pytestmark = pytest.mark.slow

STEPS_PER_EPOCH = 23  # of the 1,437 digits, at 64 a batch


def arguments(workdir, *flags, config=tiny.FLAG):
    return ["train.py", f"--workdir={workdir}", config, *flags]


def run(workdir, *flags, config=tiny.FLAG):
    with few_blocks():
        return train_command(*arguments(workdir, *flags, config=config)[1:])


def start_and_stop(workdir, number, *flags, config=tiny.FLAG, env=None):
    """Sends a signal as soon as there is a checkpoint from within an epoch."""
    flags = ("--config.checkpoint_minutes=0", *flags)
    training = subprocess.Popen(
        [sys.executable, *arguments(workdir, *flags, config=config)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    within = lambda path: path.name.isdigit() and int(path.name) % STEPS_PER_EPOCH
    while not any(map(within, (workdir / "checkpoints").glob("*"))):
        assert training.poll() is None, "ended before a checkpoint within an epoch"
        time.sleep(0.02)
    training.send_signal(number)
    output, _ = training.communicate()
    return training.returncode, output


def checkpointed(workdir, step):
    path = (workdir / "checkpoints" / str(step) / "state").resolve()
    return ocp.StandardCheckpointer().restore(path)


def log_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k != "images_per_second"} for line in lines
    ]


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    result = run(workdir, "--config.epochs=3")
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_a_run_leaves_what_it_promises(undisturbed):
    workdir, output = undisturbed
    steps = [STEPS_PER_EPOCH * epoch for epoch in (1, 2, 3)]
    lines = log_of(workdir)
    assert [line["step"] for line in lines] == steps
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    fields = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    for line in lines:
        assert all(np.isfinite(line[field]) for field in fields)
        assert 0 <= line["test_accuracy"] <= 1
        # A fraction of exactly 360 images.
        assert (line["test_accuracy"] * 360) == pytest.approx(
            round(line["test_accuracy"] * 360), abs=1e-9
        )
    assert lines[-1]["train_accuracy"] > lines[0]["train_accuracy"]
    assert json.loads((workdir / "config.json").read_text())["model"]["width_mult"]
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((workdir / "tensorboard").iterdir())
    assert "parameters" in output
    assert "multiply-accumulates" in output
    assert "matmul precision highest" in output
    assert output.count("train loss") == 3
    best, last = (
        next(line for line in output.splitlines() if line.startswith(name))
        for name in ("best test accuracy", "last test accuracy")
    )
    for line in (best, last):
        assert (workdir / line.split(": ")[1] / "state").is_dir()


def test_a_killed_run_goes_on_to_the_same_bits(undisturbed, tmp_path):
    workdir, _ = undisturbed
    status, _ = start_and_stop(tmp_path, signal.SIGKILL, "--config.epochs=3")
    assert status == -signal.SIGKILL
    result = run(tmp_path, "--config.epochs=3")
    assert result.returncode == 0, result.stderr
    assert "resumed" in result.stdout
    step = 3 * STEPS_PER_EPOCH
    assert_same_bits(checkpointed(tmp_path, step), checkpointed(workdir, step))
    assert log_of(tmp_path) == log_of(workdir)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_goes_away_saves_and_exits_cleanly(undisturbed, tmp_path):
    workdir, _ = undisturbed
    status, output = start_and_stop(tmp_path, signal.SIGHUP, "--config.epochs=3")
    assert status == 0
    assert "stopped by a signal" in output
    result = run(tmp_path, "--config.epochs=3")
    assert result.returncode == 0, result.stderr
    # The signal came after a save, and was answered with another.
    assert "checkpoint_minutes: 0.0 -> 5.0" in result.stdout
    step = 3 * STEPS_PER_EPOCH
    assert_same_bits(checkpointed(tmp_path, step), checkpointed(workdir, step))
    assert log_of(tmp_path) == log_of(workdir)


def test_a_run_stopped_by_ctrl_c_and_evaluated_now_and_then(tmp_path):
    flags = ("--config.epochs=4", "--config.eval_every=3")
    status, output = start_and_stop(tmp_path, signal.SIGINT, *flags)
    assert status == 0
    assert "stopped by a signal" in output
    result = run(tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    lines = log_of(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    # Each third, and the last.
    assert ["test_accuracy" in line for line in lines] == [False, False, True, True]
    assert result.stdout.count("; test loss") == 2
    tested = {line["epoch"]: line["test_accuracy"] for line in lines[2:]}
    best = max(tested, key=lambda epoch: (tested[epoch], epoch))
    chosen = f"{tested[best]:.2%} (chosen on the test set), epoch {best}: "
    assert f"best test accuracy {chosen}" in result.stdout
    assert f"last test accuracy {tested[4]:.2%}, epoch 4: " in result.stdout
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {STEPS_PER_EPOCH * epoch for epoch in (best, 3, 4)}


def test_a_run_of_eight_devices_goes_on_on_one_and_the_other_way(tmp_path):
    small = ("--config.schedule=piecewise", "--config.batch_size=640")
    small += ("--config.validation=157",)  # 2 steps of one size
    on = {
        8: lambda *flags: process(*arguments(*flags), env=on_eight_devices()),
        1: run,
    }
    for name, devices in (("from 8", (8, 1)), ("from 1", (1, 8))):
        workdir = tmp_path / name
        outputs = []
        for epochs, count in enumerate(devices, start=1):
            result = on[count](workdir, *small, f"--config.epochs={epochs}")
            assert result.returncode == 0, result.stderr
            outputs.append(result.stdout)
        for output, count in zip(outputs, devices, strict=True):
            assert f"devices  {count} x cpu" in output
        assert "resumed  step 2, epoch 2\n" in outputs[1]  # and its digests agree
        assert [line["epoch"] for line in log_of(workdir)] == [1, 2]
    undisturbed = run(tmp_path / "undisturbed", *small, "--config.epochs=2")
    assert undisturbed.returncode == 0, undisturbed.stderr
    # The same steps, whatever the devices: their sums are in another order.
    expected = log_of(tmp_path / "undisturbed")
    for name in ("from 8", "from 1"):
        for found, line in zip(log_of(tmp_path / name), expected, strict=True):
            assert found["train_loss"] == pytest.approx(line["train_loss"], rel=1e-3)


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A few images, under the name of a set that is known."""

    VERSION = tfds.core.Version("3.0.1")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(28, 28, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(90),
            "test": self._generate_examples(30),
        }

    def _generate_examples(self, count):
        rng = np.random.default_rng(count)
        for i in range(count):
            # A bar whose height is the class.
            pixels = rng.integers(0, 60, (28, 28), np.uint8)
            pixels[2 * (i % 10) + 4 : 2 * (i % 10) + 7] = 255
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "png")
            png.seek(0)
            yield i, {"image": png, "label": i % 10}


def test_a_small_set_of_tfds_is_cropped_to_32_and_evaluated_at_28(
    tmp_path, monkeypatch, capsys
):
    data_dir = str(tmp_path / "tfds")
    builder = FashionMnist(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    shapes = []
    call = LruNet.__call__

    def spy(self, images, *, train=False):
        shapes.append((train, images.shape))
        return call(self, images, train=train)

    monkeypatch.setattr(LruNet, "__call__", spy)
    config = lrunet.get_config("fashion_mnist")
    config.model.update(layer_reuse=1, width_mult=0.125, drop=0.0)
    config.update(batch_size=30, epochs=3, learning_rate=0.05)
    config.augment.flip = False
    workdir = tmp_path / "run"
    train_and_evaluate(config, str(workdir), data_dir)
    assert "90 training and 30 test images of 28x28x1" in capsys.readouterr().out
    batches = {(train, shape) for train, shape in shapes if shape[0] > 1}
    assert batches == {(True, (30, 32, 32, 1)), (False, (30, 28, 28, 1))}
    lines = log_of(workdir)
    assert [line["step"] for line in lines] == [3, 6, 9]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.usefixtures("shallow")
def test_changes_take_effect_and_another_model_is_refused(tmp_path, capsys):
    train_and_evaluate(tiny_config(), str(tmp_path))
    capsys.readouterr()
    config = tiny_config(batch_size=128, learning_rate=0.01)
    config.epochs = 3
    state = train_and_evaluate(config, str(tmp_path))
    output = capsys.readouterr().out
    for change in ("batch_size: 64 -> 128", "epochs: 2 -> 3", "0.05 -> 0.01"):
        assert change in output
    assert int(state.step) == 2 * STEPS_PER_EPOCH + 12  # 1,437 images at 128 a batch
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2, 3]
    # The last step begins when 1,437 less the 29 images of the last batch are seen.
    done = 3 - 29 / 1437
    rate = 0.01 * (1 + np.cos(np.pi * (done - 1) / 2)) / 2
    assert log_of(tmp_path)[-1]["learning_rate"] == pytest.approx(rate, rel=1e-3)

    before = {p: p.stat().st_mtime for p in tmp_path.rglob("*") if p.is_file()}
    config.model.width_mult = 0.25
    with pytest.raises(InputError, match=r"mult is 0.25, but the run in .* has 0.125"):
        train_and_evaluate(config, str(tmp_path))
    after = {p: p.stat().st_mtime for p in tmp_path.rglob("*") if p.is_file()}
    assert before == after


@pytest.mark.usefixtures("shallow")
def test_a_warm_up_no_shorter_than_the_run_becomes_a_tenth_of_it(tmp_path, capsys):
    config = tiny_config()
    config.epochs = 1
    assert config.warmup_epochs == 1.0
    train_and_evaluate(config, str(tmp_path))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "warm-up  0.1 epochs: warmup_epochs is 1, and no shorter than the run of 1"
    )
    (line,) = log_of(tmp_path)
    # The last step begins when 1,437 less the 29 images of the last batch are seen.
    done = (1 - 29 / 1437 - 0.1) / 0.9
    rate = 0.05 * (1 + np.cos(np.pi * done)) / 2
    assert line["learning_rate"] == pytest.approx(rate, rel=1e-3)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["warmup_epochs"] == 1.0
    # A longer run has the warm-up that was asked for.
    config.epochs = 2
    train_and_evaluate(config, str(tmp_path))
    assert "warm-up" not in capsys.readouterr().out


@pytest.mark.usefixtures("shallow")
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    expected = train_and_evaluate(tiny_config(), str(tmp_path))
    last = tmp_path / "checkpoints" / str(2 * STEPS_PER_EPOCH)
    for path in (last / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    state = train_and_evaluate(tiny_config(), str(tmp_path))
    output = capsys.readouterr().out
    assert f"checkpoint {2 * STEPS_PER_EPOCH} can't be read" in output
    assert f"resumed  step {STEPS_PER_EPOCH}" in output
    assert_same_bits(state.params, expected.params)


@pytest.mark.usefixtures("shallow")
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    train_and_evaluate(tiny_config(), str(tmp_path))
    good = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    config = tiny_config(learning_rate=1e38)
    config.epochs = 4
    with pytest.raises(DivergedError, match=r"not finite .* checkpoint is .*/46"):
        train_and_evaluate(config, str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == good
