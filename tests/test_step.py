"""The training and evaluation steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrunet_jax import create_model, data
from lrunet_jax.train.devices import make_mesh
from lrunet_jax.train.evaluation import make_eval_call
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import Metrics, create_train_state, cross_entropy
from lrunet_jax.train.step import make_train_call, train_step


def small_state(drop=0.0, shape=(16, 16, 3)):
    model = create_model(
        "lrunet", width_mult=0.25, layer_reuse=2, drop=drop, num_classes=5
    )
    tx = create_optimizer(lambda epoch: 0.1)
    return create_train_state(model, tx, jax.random.key(0), shape, num_images=100)


def random_split(size=10, shape=(16, 16, 3)):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *shape), np.uint8)
    return data.Split(images, rng.integers(0, 5, size).astype(np.int32))


def test_a_step_moves_every_parameter_and_statistic():
    state = small_state()
    images, labels = random_split()
    new = jax.jit(train_step)(state, images / 255.0, labels, jax.random.key(0))
    assert int(new.step) == 1
    assert int(new.metrics.count) == 10
    before = (state.params, state.batch_stats)
    leaves = jax.tree_util.tree_leaves_with_path(before)
    after = jax.tree.leaves((new.params, new.batch_stats))
    for (path, old), value in zip(leaves, after, strict=True):
        # The biases before a second norm have no gradient, and begin at 0.
        idle = "dw_bn_list" in str(path) and "bias" in str(path)
        assert np.array_equal(old, value) == idle, path


def test_the_learning_rate_follows_the_epochs_done_with_their_fraction():
    state = small_state()
    tx = create_optimizer(lambda epoch: 1.0 + epoch, momentum=0.0, weight_decay=0.0)
    metrics = Metrics(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.asarray(25))
    state = state.replace(tx=tx, opt_state=tx.init(state.params), metrics=metrics)
    state = state.replace(epoch=jnp.asarray(3))  # and 25 of 100 images
    grads = jax.tree.map(jnp.ones_like, state.params)
    new = state.apply_gradients(grads=grads)
    for old, value in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(new.params), strict=True
    ):
        np.testing.assert_allclose(value, old - 4.25, rtol=1e-6)
    assert not state.epoch_is_done()
    # Seen twice, after a change of the batch size, images do not begin another epoch.
    over = state.replace(metrics=metrics.replace(count=jnp.asarray(130)))
    np.testing.assert_allclose(over.epochs_done(), 3.99, rtol=1e-6)
    assert state.replace(
        metrics=metrics.replace(count=jnp.asarray(100))
    ).epoch_is_done()


def test_the_running_variance_takes_the_unbiased_variance():
    state = small_state()
    images, labels = random_split()
    new = jax.jit(train_step)(state, images / 255.0, labels, jax.random.key(0))
    kernel = state.params["features_0"]["kernel"]
    stem = jax.lax.conv_general_dilated(
        images / np.float32(255),
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    stem = np.asarray(stem, np.float64).reshape(-1, 64)
    found = new.batch_stats["features_1"]
    np.testing.assert_allclose(found["mean"], 0.1 * stem.mean(0), rtol=1e-4, atol=1e-6)
    expected = 0.9 + 0.1 * stem.var(0, ddof=1)
    np.testing.assert_allclose(found["var"], expected, rtol=1e-5)


def test_dropout_follows_the_key():
    state = small_state(drop=0.5)
    images, labels = random_split()
    step = jax.jit(train_step)
    losses = [
        float(step(state, images / 255.0, labels, jax.random.key(k)).metrics.loss)
        for k in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_metrics_are_sums_over_what_the_mask_keeps():
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, 0.0]])
    labels = jnp.array([0, 0, 0, 0])
    losses = cross_entropy(logits, jax.nn.one_hot(labels, 2))
    keep = jnp.array([True, True, True, False]), jnp.array([True, False, False, False])
    metrics = Metrics.of(losses, logits, labels, keep[0])
    metrics += Metrics.of(losses, logits, labels, keep[1])
    losses = np.log1p(np.exp([-2.0, 1.0, -5.0, -2.0]))
    np.testing.assert_allclose(metrics.loss, losses.sum(), rtol=1e-6)
    assert (int(metrics.correct), int(metrics.count)) == (3, 4)
    assert metrics.means()["accuracy"] == 0.75


def test_evaluation_counts_every_image_once_whatever_the_batch():
    state, split = small_state(), random_split(11)
    mesh = make_mesh(jax.devices()[:1])
    evaluate = make_eval_call(state.apply_fn, mesh)
    found = [
        evaluate(state.variables(), split, data.eval_batches(11, batch))[0]
        for batch in (2, 4, 11, 16)
    ]
    for metrics in found:
        assert int(metrics.count) == 11
        assert int(metrics.correct) == int(found[0].correct)
        np.testing.assert_allclose(metrics.loss, found[0].loss, rtol=1e-5)


@pytest.mark.slow
def test_calls_may_begin_and_end_anywhere():
    split = random_split(24)
    mesh = make_mesh(jax.devices()[:1])
    augment = data.Augmentation(size=16, padding=2, rotation=10.0, flip=True)
    call = make_train_call(augment, mesh)
    batches, key = np.arange(24, dtype=np.int32).reshape(6, 4), jax.random.key(3)
    whole = call(small_state(drop=0.5), split, batches, 0, 6, key)
    parts = small_state(drop=0.5)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        parts = call(parts, split, batches, start, stop, key)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
