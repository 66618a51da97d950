"""Many devices: the same run on any number of them, and what they send for it.

What needs eight devices runs in a process of its own, whose CPU is eight.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import SMALL_NETWORKS, figures, sent
from conftest import ROOT, command, on_eight_devices, process

from lrunet_jax import create_model, data, ops
from lrunet_jax.models.lrunet import GROUPS
from lrunet_jax.runs.checkpoints import array_fields
from lrunet_jax.train.devices import (
    batch_on,
    make_mesh,
    on_each_device,
    place,
)
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.evaluation import make_eval_call
from lrunet_jax.train.optim import create_optimizer, create_schedule
from lrunet_jax.train.state import create_train_state
from lrunet_jax.train.targets import make_targets

SMALL = {"width_mult": 0.25, "layer_reuse": 2}
BATCH = 64
IMPORTING = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}  # of these files


def train_on(devices, dtype, images=None):
    """The state after an epoch of the digits, or some of them, with everything on."""
    mesh = make_mesh(devices)
    split = data.load_split("digits", "train")
    split = data.Split(split.images[:images], split.labels[:images])
    model = create_model("lrunet", drop=0.2, **SMALL)
    schedule = create_schedule(
        "cosine",
        0.05,
        epochs=15,
        decay_epochs=(),
        decay_factor=0.1,
        warmup_epochs=1.0,
    )
    state = create_train_state(
        model,
        create_optimizer(schedule, nesterov=True),
        jax.random.key(0),
        split.images.shape[1:],
        num_images=len(split.labels),
        input_stats=data.input_stats(split),
        targets=make_targets(10, label_smoothing=0.1, mixup=0.2),
        ema_decay=0.9,
    )
    cast = lambda a: a.astype(dtype) if a.dtype.kind == "f" else a
    fields = jax.device_get(array_fields(jax.tree.map(cast, state)))
    state = state.replace(**place(fields, mesh))
    split = place(split, mesh)
    augmentation = data.Augmentation(size=32, padding=4, rotation=10.0, flip=True)
    loop = EpochLoop(state, split, augmentation, mesh, BATCH, 0, dtype)
    *_, state = loop.run(state, split)
    for leaf in jax.tree.leaves((state.learned(), state.opt_state, state.ema)):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        for other in others:
            np.testing.assert_array_equal(first, other, "replicas differ")
    return state, split, mesh


def evaluated(state, split, mesh):
    """The metrics and logits of its images."""
    evaluate = make_eval_call(state.apply_fn, mesh, "float64")
    batches = data.eval_batches(len(split.labels), 1024)
    return evaluate(state.variables(), split, batches)


def assert_close(found, expected):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        # Sums differ in their order, by 1e-16, and 23 steps make that larger; the
        # metrics of the evaluation are float32.
        tolerance = 1e-6 if a.dtype == np.float32 else 1e-12
        allowed = tolerance * (1 + np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=allowed)


def same_run():
    """Compares runs on one device and on more; for a process of eight devices."""
    jax.config.update("jax_enable_x64", True)
    devices = jax.devices()
    assert len(devices) == 8
    one = train_on(devices[:1], "float64")
    assert int(one[0].step) == 23  # the last of 29 images, which no other divides
    for count in (2, 4, 8):
        several = train_on(devices[:count], "float64")
        assert_close(several[0], one[0])
    assert_close(evaluated(*several), evaluated(*one))
    jax.config.update("jax_enable_x64", False)
    one, eight = (train_on(devices[:n], "float32", BATCH)[0].metrics for n in (1, 8))
    # A ReLU or a maximum may flip in the steps that follow the first.
    np.testing.assert_allclose(one.loss, eight.loss, rtol=1e-6)
    assert int(one.correct) == int(eight.correct)


def in_eight(function, count=8):
    """Calls a function of this file in a process of eight CPU devices, or more."""
    code = f"import test_devices; test_devices.{function}()"
    environment = on_eight_devices(**IMPORTING, count=count)
    result = process("-c", code, env=environment, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_on_1_2_4_and_8_devices():
    in_eight("same_run")


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_a_step_sends_norms_sums_and_gradients_and_nothing_else(name):
    found = figures("cpu:8", name, "--config.lowering=xla")
    count, size = sent(found)
    assert found["devices"] == 8
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["collectives"]["all-reduce"]["count"] == count
    assert size / 1.1 < found["collectives"]["all-reduce"]["bytes"] <= 1.1 * size


@pytest.mark.slow
def test_on_cpu_the_groups_of_a_block_send_theirs_one_after_the_other():
    found = figures("cpu:8", "lrunet", "--config.lowering=cpu")
    count, size = sent(found, messages=GROUPS)
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["collectives"]["all-reduce"]["count"] == count
    assert found["collectives"]["all-reduce"]["bytes"] <= 1.1 * size


def test_one_device_sends_nothing():
    result = command("compile", "--topology=cpu:1", "--json", *SMALL_NETWORKS["lrunet"])
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["collectives"] == {}


def sums_over_batch():
    """Sums of whole numbers over devices whose number has no exact reciprocal."""
    for count in (3, 41):
        mesh = make_mesh(jax.devices()[:count])
        for size in (count, count + 1):  # on shares, and whole on each

            def correct(labels):
                with batch_on(mesh, labels.size):
                    own = jnp.sum(ops.own_share(labels))
                    return ops.over_batch((), own)[1]

            found = jax.jit(on_each_device(correct, mesh))(np.full(size, 3, np.int32))
            assert int(found) == 3 * size, (count, size)


def test_whole_numbers_stay_whole_on_any_number_of_devices():
    in_eight("sums_over_batch", count=41)
