"""The options of today's recipes, each against its definition, and all together."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_loop import (
    STEPS_PER_EPOCH,
    assert_same_bits,
    checkpointed,
    log_of,
    run,
    start_and_stop,
)
from weights import random_variables

import lrunet_jax
from configs import digits
from lrunet_jax import create_model, data, list_models
from lrunet_jax.errors import InputError
from lrunet_jax.train.devices import make_mesh, replicated
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.loop import train_and_evaluate
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import create_train_state
from lrunet_jax.train.step import make_train_call, train_step
from lrunet_jax.train.targets import make_targets
from lrunet_jax.weights import torch_format
from lrunet_jax.weights.loading import open_model, save_model, weights_for
from lrunet_jax.weights.state_dict import to_state_dict

EVERYTHING = {
    "nesterov": True,
    "decay_of": "kernels",
    "normalise": True,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "ema_decay": 0.9,
    "dtype": "bfloat16",
}
FLAGS = [f"--config.{name}={value}" for name, value in EVERYTHING.items()]
FLAGS += ["--config.model.layer_reuse=2", "--config.model.width_mult=0.125"]
FLAGS += ["--config.augment.size=16"]
LRUNET = "--config=configs/digits.py"


def small_state(name="lrunet", **options):
    fields = {"lrunet": {"width_mult": 0.25, "layer_reuse": 2, "drop": 0.0}}
    model = create_model(name, num_classes=5, **fields.get(name, {"width_mult": 0.25}))
    tx = create_optimizer(lambda epoch: 0.1)
    return create_train_state(
        model, tx, jax.random.key(0), (16, 16, 1), num_images=16, **options
    )


def batch(size=16):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(size, 16, 16, 1)).astype(np.float32)
    return images, rng.integers(0, 5, size).astype(np.int32)


def test_ema_is_the_average_it_says():
    state = small_state(ema_decay=0.3)
    step = jax.jit(train_step)
    expected = jax.tree.map(lambda a: np.asarray(a, np.float64), state.learned())
    for i in range(4):
        state = step(state, *batch(), jax.random.key(i))
        # The number of updates done counts this one.
        decay = min(0.3, (1 + i + 1) / (10 + i + 1))
        expected = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * np.asarray(new, np.float64),
            expected,
            state.learned(),
        )
    assert jax.tree.structure(expected) == jax.tree.structure(state.ema)
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    raw, averaged = state.evaluated().values()
    assert_same_bits(averaged, state.ema | {"input_stats": {}})
    assert_same_bits(raw, state.learned() | {"input_stats": {}})


def test_without_ema_there_is_nothing_of_it():
    state = small_state()
    assert state.ema == {}
    assert list(state.evaluated()) == [""]
    assert jax.jit(train_step)(state, *batch(), jax.random.key(0)).ema == {}


def test_input_stats_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (50, 7, 9, 3)).astype(np.uint8)
    found = data.input_stats(data.Split(images, np.zeros(50, np.int32)))
    pixels = images.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["std"], pixels.std(0), rtol=1e-6)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["lrunet", "mobilenet_v2", "shufflenet_v2"])
def test_images_are_normalised_by_the_statistics_in_the_variables(name):
    state = small_state(name)
    images, _ = batch()
    stats = {"mean": np.float32([0.3]), "std": np.float32([0.2])}
    apply = jax.jit(state.apply_fn)
    found = apply(state.variables() | {"input_stats": stats}, images)
    expected = apply(state.variables(), (images - 0.3) / np.float32(0.2))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_so_and_keeps_weights_and_statistics():
    split = data.Split(np.zeros((16, 16, 16, 1), np.uint8), np.zeros(16, np.int32))
    augment = data.Augmentation(size=16, padding=0, rotation=0.0, flip=False)
    state, key = small_state(), jax.random.key(0)
    batches = np.arange(16, dtype=np.int32)[None]
    jaxpr = {
        dtype: str(
            jax.make_jaxpr(make_train_call(augment, make_mesh(), dtype))(
                state, split, batches, 0, 1, key
            )
        )
        for dtype in ("float32", "bfloat16")
    }
    assert "bf16[" not in jaxpr["float32"]
    assert "bf16[64,8,8,16]" in jaxpr["bfloat16"]  # what the stem puts out
    images, labels = batch()
    new = jax.jit(train_step)(state, images.astype(jnp.bfloat16), labels, key)
    for leaf in jax.tree.leaves(new.learned()):
        assert leaf.dtype == jnp.float32
    single = jax.jit(train_step)(state, images, labels, key)
    # bfloat16 has 8 bits; a few dozen products deep the loss keeps two digits.
    np.testing.assert_allclose(new.metrics.loss, single.metrics.loss, rtol=0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list_models())
def test_the_same_seed_gives_the_same_bits(name, dtype):
    """Every model, with every option on."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (18, 16, 16, 1), np.uint8)
    split = data.Split(images, rng.integers(0, 5, 18).astype(np.int32))
    augment = data.Augmentation(size=16, padding=2, rotation=10.0, flip=True)
    fields = {} if name.startswith("shuffle") else {"drop": 0.3}
    fields |= {"width_mult": 0.125, "layer_reuse": 2} if name == "lrunet" else {}
    model = create_model(name, num_classes=5, **({"width_mult": 0.25} | fields))
    tx = create_optimizer(lambda epoch: 0.1, nesterov=True, decay_of="kernels")

    state = create_train_state(
        model,
        tx,
        jax.random.key(3),
        (16, 16, 1),
        num_images=18,
        input_stats=data.input_stats(split),
        targets=make_targets(5, 0.1, 0.2),
        ema_decay=0.9,
    )
    state, split = jax.device_put((state, split), replicated(make_mesh()))
    steps = EpochLoop(state, split, augment, make_mesh(), 6, 3, dtype)

    def train():
        calls = steps.run(jax.tree.map(jnp.copy, state), split)
        *_, last = calls
        return last

    first, second = train(), train()
    assert int(first.step) == 3
    assert_same_bits(first.evaluated(), second.evaluated())
    assert_same_bits(first.opt_state, second.opt_state)
    assert float(first.metrics.loss) == float(second.metrics.loss)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("everything")
    result = run(workdir, "--config.epochs=2", *FLAGS, config=LRUNET)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.slow
def test_with_everything_on_a_run_that_was_stopped_ends_in_the_same_bits(
    everything, tmp_path
):
    flags = ("--config.epochs=2", *FLAGS)
    code, _ = start_and_stop(tmp_path, signal.SIGTERM, *flags, config=LRUNET)
    assert code == 0
    result = run(tmp_path, *flags, config=LRUNET)
    assert result.returncode == 0, result.stderr
    last = 2 * STEPS_PER_EPOCH
    assert_same_bits(checkpointed(tmp_path, last), checkpointed(everything, last))
    assert log_of(tmp_path) == log_of(everything)


@pytest.mark.slow
def test_averages_and_statistics_travel_in_the_checkpoint(everything, tmp_path):
    lines = log_of(everything)
    assert all(0 < line["test_ema_accuracy"] <= 1 for line in lines)
    best = max(lines, key=lambda line: (line["test_ema_accuracy"], line["step"]))
    stored = open_model(everything)
    assert stored.counters == best["step"]
    assert stored.accuracy == best["test_ema_accuracy"]
    raw = checkpointed(everything, best["step"])
    assert_same_bits(stored.variables["params"], raw["ema"]["params"])

    # Evaluated alone, the weights have the accuracy of the record.
    model, variables = lrunet_jax.load(everything)
    test = data.load_split("digits", "test")
    logits = jax.jit(model.apply)(variables, test.images.astype(np.float32) / 255)
    accuracy = np.mean(np.argmax(logits, -1) == test.labels)
    assert accuracy == pytest.approx(best["test_ema_accuracy"])
    stats = data.input_stats(data.load_split("digits", "train"))
    assert_same_bits(jax.tree.map(np.asarray, variables["input_stats"]), stats)

    save_model(stored, str(tmp_path / "orbax"))
    assert_same_bits(open_model(tmp_path / "orbax").variables, stored.variables)
    with pytest.raises(InputError, match="normalises its images"):
        save_model(stored, str(tmp_path / "weights.pt"))
    assert not (tmp_path / "weights.pt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--config.normalise=False", "--config.ema_decay=0.0"])
def test_what_the_arrays_depend_on_stays_as_it_began(everything, flag):
    result = run(everything, "--config.epochs=3", *FLAGS, flag, config=LRUNET)
    assert result.returncode == 2
    assert "give another --workdir, or the same value to go on" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_training_begins_from_given_weights(tmp_path, capsys):
    path = tmp_path / "tiny.pt"
    model = create_model("lrunet", layer_reuse=1, width_mult=0.125)
    variables = random_variables(model, 1)
    torch_format.write(path, {"net": to_state_dict(variables, 0)})
    config = digits.get_config()
    config.model.update({"layer_reuse": 1, "width_mult": 0.125})
    config.augment.size = 16
    config.update(init_from=str(path), learning_rate=0.0, weight_decay=0.0)
    config.update(epochs=1, batch_size=479)
    state = train_and_evaluate(config, str(tmp_path / "same"))
    assert_same_bits(state.params, open_model(path).variables["params"])

    config.model.update({"layer_reuse": 2})
    with pytest.raises(InputError, match=r"init_from is .*another network: .*dw_bn"):
        train_and_evaluate(config, str(tmp_path / "other"))

    # A run that goes on has weights of its own.
    path.unlink()
    config.model.update({"layer_reuse": 1})
    config.epochs = 2
    state = train_and_evaluate(config, str(tmp_path / "same"))
    assert state.epoch == 2


def test_a_classifier_of_other_classes_stays_fresh(shared, tmp_path, capsys):
    path = shared / "golden" / "train" / "mobilenet_w025_init.t7"
    stored = open_model(path)
    own = create_model(**(stored.arguments | {"num_classes": 7}))
    variables = random_variables(own, 3)

    found = weights_for(own, variables, str(path), normalise=False)
    assert "classifier_1 is of another number of classes" in capsys.readouterr().out
    for name, module in found["params"].items():
        source = variables if name == "classifier_1" else stored.variables
        assert_same_bits(module, source["params"][name])
