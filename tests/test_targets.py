"""Label smoothing and mixup against their definitions."""

import jax
import numpy as np
import pytest
from oracle import needs_torch, torch
from scipy import stats

from lrunet_jax.train.state import cross_entropy
from lrunet_jax.train.targets import make_targets

KEY = jax.random.key(0)


def batch(size=6, classes=5):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(size, 4, 4, 1)).astype(np.float32)
    return images, rng.integers(0, classes, size).astype(np.int32)


def test_without_either_they_are_the_labels():
    images, labels = batch()
    found, targets = make_targets(5)(KEY, images, labels)
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(targets, np.eye(5)[labels])


@needs_torch
def test_smoothing_is_pytorch_s():
    images, labels = batch()
    _, targets = make_targets(5, 0.1)(KEY, images, labels)
    logits = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    losses = cross_entropy(logits, targets)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits),
        torch.from_numpy(labels).long(),
        label_smoothing=0.1,
        reduction="none",
    )
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_mixes_images_and_targets_by_one_share(smoothing):
    images, labels = batch()
    _, plain = make_targets(5, smoothing)(KEY, images, labels)
    mixed, targets = make_targets(5, smoothing, 0.3)(KEY, images, labels)
    difference = images - images[::-1]
    share = np.sum((mixed - images[::-1]) * difference) / np.sum(difference**2)
    assert 0 < share < 1
    expected = share * images + (1 - share) * images[::-1]
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-6)
    expected = share * plain + (1 - share) * plain[::-1]
    np.testing.assert_allclose(targets, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sum(targets, -1), 1, rtol=1e-6)


def test_mixup_s_share_is_beta_distributed():
    images = np.array([[[[0.0]]], [[[1.0]]]], np.float32)
    labels = np.array([0, 1], np.int32)
    mix = jax.jit(jax.vmap(make_targets(2, 0.0, 0.4), (0, None, None)))
    mixed, _ = mix(jax.random.split(KEY, 2000), images, labels)
    shares = 1 - np.asarray(mixed)[:, 0].ravel()
    # One test in a thousand would fail if the key were not fixed.
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


def test_bfloat16_images_stay_so_and_targets_do_not():
    images, labels = batch()
    mixed, targets = make_targets(5, 0.1, 0.4)(KEY, images.astype("bfloat16"), labels)
    assert mixed.dtype == "bfloat16"
    assert targets.dtype == np.float32
