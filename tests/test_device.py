"""What holds on the accelerator at hand: `pytest -m device`, in less than ten minutes.

It runs in one process, compiles programs as users' are, and ends with a table. Results
are compared with the CPU's beside the accelerator and with the original's.
"""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType

import lrunet_jax
from configs import digits
from lrunet_jax import benchmark, create_model, data, ops
from lrunet_jax.train.devices import replicated
from lrunet_jax.train.epoch import EpochLoop
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import create_train_state
from lrunet_jax.train.step import make_train_call, train_step
from lrunet_jax.weights.published import PUBLISHED, file_name

pytestmark = [
    pytest.mark.device,
    # What a driver or another jax warns of breaks no promise.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(autouse=True)
def highest():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def cpu():
    """The CPU, which is beside any accelerator."""
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        platforms = os.environ.get("JAX_PLATFORMS")
        pytest.fail(
            f"JAX_PLATFORMS is {platforms!r}, which leaves out the CPU to compare "
            f"with: unset it, or make it '{platforms},cpu'",
            pytrace=False,
        )


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def largest(tree):
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


def difference(found, expected):
    """The length of the difference of two trees, relative to that of `expected`."""
    flat = lambda tree: np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    )
    found, expected = flat(found), flat(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# --- Operators --------------------------------------------------------------------


def iteration(x, dw, pw, *norms):
    """An iteration of the reuse block, in which no sign before the ReLU is in doubt."""
    dw_scale, dw_bias, scale, bias = norms
    norms = ops.Norm(dw_scale, dw_bias), ops.Norm(scale, bias + 20 * jnp.sign(bias))
    carry, _ = ops.reuse(ops.begin_reuse(x), ops.ReuseWeights(dw, pw, *norms))
    return ops.end_reuse(carry)


X = (16, 12, 12, 8)  # channels, height, width, batch
OPERATORS = {
    "conv": (lambda *a: ops.conv(*a, stride=2), (3, 12, 12, 8), (3, 3, 3, 16)),
    "depthwise": (ops.depthwise, X, (3, 3, 1, 32)),
    "depthwise of stride 2": (
        lambda *a: ops.depthwise(*a, stride=2),
        X,
        (3, 3, 1, 16),
    ),
    "pointwise": (lambda *a: ops.pointwise(*a, groups=8), X, (1, 1, 2, 32)),
    "batch_norm": (
        lambda x, *norm: ops.batch_norm(x, ops.Norm(*norm))[0],
        X,
        (16,),
        (16,),
    ),
    "max_pool": (ops.max_pool, X),
    "avg_pool": (ops.avg_pool, X),
    "reuse": (iteration, X, (3, 3, 1, 32), (1, 1, 4, 16), (32,), (32,), (16,), (16,)),
}

# Of the largest value. The longest sums have 1,152 terms, which float32 rounds to
# 2^-24 each: if all errors had one sign they came to 7e-5, at random to 2e-6.
ROUNDING = 1e-5


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("lowering", sorted({*ops.LOWERINGS} - {"xla"}))
def test_lowering(lowering, operator, row):
    function, *shapes = OPERATORS[operator]
    arguments = [normal(i, *shape) for i, shape in enumerate(shapes)]
    if operator == "max_pool":  # the first of equal values has the gradient
        arguments = [np.round(arguments[0])]

    def both(*arguments):
        out, vjp = jax.vjp(function, *arguments)
        return out, vjp(normal(7, *out.shape))

    found = {}
    for name in (lowering, "xla"):
        with ops.lowering(name):
            found[name] = jax.device_get(jax.jit(both)(*arguments))
    (out, grads), (expected, expected_grads) = found[lowering], found["xla"]
    off = largest(out - expected) / largest(expected)
    # The gradient of a bias before another norm is 0, of which there is rounding.
    least = 1e-2 * largest(expected_grads)
    grads_off = max(
        largest(a - b) / max(largest(b), least)
        for a, b in zip(grads, expected_grads, strict=True)
    )
    row(f"outputs {off:.0e}, gradients {grads_off:.0e}", f"{ROUNDING:.0e}")
    assert max(off, grads_off) < ROUNDING


def test_augmentation_has_the_pixels_of_the_cpu(cpu, row):
    images = np.random.default_rng(0).integers(0, 256, (256, 28, 28, 3), np.uint8)
    augmentation = data.Augmentation(size=32, padding=4, rotation=10.0, flip=True)

    @jax.jit
    def augment(key, images):
        return augmentation.apply(images, augmentation.draw(key, images.shape))

    found = np.asarray(augment(jax.random.key(3), images))
    with jax.default_device(cpu), ops.lowering("xla"):
        expected = np.asarray(augment(jax.random.key(3), images))
    differing = np.count_nonzero(found != expected)
    row(f"{differing} of {found.size:,} differ", "0")
    assert differing == 0


# --- Networks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_of_the_original(name, shared, row):
    path = shared / "checkpoints" / file_name(name)
    model, variables = lrunet_jax.load(path)
    with np.load(shared / "golden" / "images.npz") as images:
        pixels = images[path.stem].astype(np.float32) / 255
    with np.load(shared / "golden" / f"{path.stem}.npz") as golden:
        expected = golden["logits"]
    logits = np.asarray(jax.jit(model.apply)(variables, pixels))
    # The original's own logits move by 1.1e-5 with the batch's composition.
    row(f"{largest(logits - expected):.1e}", "1e-4")
    assert largest(logits - expected) < 1e-4


def one_step(model, split, dtype, device, lowering):
    """Loss, gradients and statistics of a step on a device, and the new weights."""
    on_cpu = jax.devices("cpu")[0]
    with jax.default_device(on_cpu), ops.lowering("cpu"):
        state = create_train_state(
            model,
            create_optimizer(lambda epoch: 0.1, weight_decay=0.0),
            jax.random.key(0),
            split.images.shape[1:],
            num_images=100,
        )
    if dtype == "float64":
        double = lambda a: a.astype(dtype) if a.dtype == "float32" else a
        state = jax.tree.map(double, state)
    images = jnp.asarray(split.images / 255, dtype)
    arguments = state, images, split.labels, jax.random.key(1)
    with ops.lowering(lowering):
        new = jax.jit(train_step)(*jax.device_put(arguments, device))
    grads = optax.tree.get(new.opt_state, "trace")  # the momentum, of one step
    return jax.device_get((new.metrics.loss, grads, new.batch_stats, new.params))


NETWORKS = {
    "lrunet": {"width_mult": 0.5, "layer_reuse": 2, "drop": 0.0},
    "shufflenet": {"width_mult": 0.25, "groups": 2},
}
