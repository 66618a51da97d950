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

import lrunet_jax
from configs import digits
from lrunet_jax import benchmark, create_model, data, ops
from lrunet_jax.train.devices import make_mesh, replicated
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
    """The CPU, which is beside any accelerator unless it is left out."""
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


def iterations(x, dw, pw, dw_scale, dw_bias, scale, bias):
    """Two of the reuse block, in which no sign before a ReLU is in doubt.

    One alone would leave the channels as a lowering begins with them. The first adds
    little to what is at least 1; in the second the bias decides.
    """
    carry = ops.begin_reuse(jnp.abs(x) + 1)
    for last in (
        ops.Norm(scale / 100, bias / 100),
        ops.Norm(scale, bias + 20 * jnp.sign(bias)),
    ):
        weights = ops.ReuseWeights(dw, pw, ops.Norm(dw_scale, dw_bias), last)
        carry, _ = ops.reuse(carry, weights)
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
    "reuse": (iterations, X, (3, 3, 1, 32), (1, 1, 4, 16), (32,), (32,), (16,), (16,)),
}

# Of the largest value, 7e-5: what float32's rounding of 2^-24 comes to in the longest
# sums, of 1,152 terms, if all errors have one sign. TF32's is 5e-4 for each factor.
ROUNDING = 1152 * 2**-24


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
    whole = largest(expected_grads)
    grads_off = 0.0
    for grad, other in zip(grads, expected_grads, strict=True):
        # Of a bias before another norm it is 0, of which there is rounding.
        scale = size if (size := largest(other)) > 1e-3 * whole else whole
        grads_off = max(grads_off, largest(grad - other) / scale)
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


NETWORKS = {
    "lrunet": {"width_mult": 0.25, "layer_reuse": 2, "drop": 0.5},
    "shufflenet": {"width_mult": 0.25, "groups": 2},  # with pooling, of few blocks here
}


def one_step(name, dtype, device, lowering):
    """Loss, gradients and statistics of a first step, and the new weights."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(32, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, 32).astype(np.int32)
    tx = create_optimizer(lambda epoch: 0.1, weight_decay=0.0)
    model, key = create_model(name, **NETWORKS[name]), jax.random.key(0)
    with jax.default_device(jax.devices("cpu")[0]), ops.lowering("cpu"):
        state = create_train_state(model, tx, key, images.shape[1:], num_images=100)
    arguments = state, images.astype(dtype), labels, key
    with ops.lowering(lowering):
        new = jax.jit(train_step)(*jax.device_put(arguments, device))
    (grads,) = optax.tree.get_all_with_path(new.opt_state, "trace")  # of one step
    return new.metrics.loss, grads[1], new.batch_stats, new.params


# Of loss, gradients, statistics and weights, relative to the CPU's own in float32.
# float32: in another lowering CPU's gradients differ by 1e-6; one ReLU that decides
# otherwise is up to 1e-3 of them, and with factors of 8 bits they differ by 0.25.
# bfloat16: its 8 bits, and twice that 0.25.
FLOAT32 = (1e-5, 2e-3, 1e-5, 1e-3)
BFLOAT16 = (2**-6, 0.5, 2**-7, 0.1)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_that_of_the_cpu(name, dtype, cpu, row):
    found = one_step(name, dtype, jax.devices()[0], "auto")
    expected = one_step(name, "float32", cpu, "cpu")
    off = [difference(*pair) for pair in zip(found, expected, strict=True)]
    parts = ("loss", "gradients", "statistics", "weights")
    allowed = FLOAT32 if dtype == "float32" else BFLOAT16
    in_words = lambda values: ", ".join(
        f"{part} {value:.0e}" for part, value in zip(parts, values, strict=True)
    )
    row(in_words(off), in_words(allowed))
    assert all(a < b for a, b in zip(off, allowed, strict=True))


# --- Training ---------------------------------------------------------------------


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch, row):
    config = digits.get_config()
    config.update(epochs=1)
    config.model.update({"layer_reuse": 1, "width_mult": 0.125})
    config.augment.size = 16
    train = lambda name: lrunet_jax.train_and_evaluate(config, str(tmp_path / name))
    expected = train("undisturbed")
    calls = EpochLoop.run

    def interrupted(self, *args):
        for number, state in enumerate(calls(self, *args)):
            if number == 1:
                signal.raise_signal(signal.SIGTERM)
            yield state

    with monkeypatch.context() as patched:
        patched.setattr(EpochLoop, "run", interrupted)
        stopped = train("stopped")
    assert 0 < int(stopped.metrics.count) < stopped.num_images
    found = train("stopped")
    assert int(found.step) == int(expected.step) == 23

    found, expected = jax.device_get((found, expected))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    same = all(np.array_equal(a, b) for a, b in pairs)
    off = difference(found.learned(), expected.learned())
    flag = "--xla_gpu_deterministic_ops=true"  # without it a GPU adds in any order
    promised = (
        jax.default_backend() in ("cpu", "tpu") or flag in os.environ["XLA_FLAGS"]
    )
    row(
        "the same bits" if same else f"weights differ by {off:.0e}",
        "the same bits" if promised else f"1e-2, as XLA_FLAGS is without {flag}",
    )
    # Between what rounding comes to in these steps, 1e-6 in another lowering on CPU,
    # and 0.35, which it is when the momentum is lost.
    assert same if promised else off < 1e-2


def test_all_devices_take_the_steps_of_one(row):
    count = jax.device_count()
    if count == 1:
        pytest.skip("one device only")
    model = create_model("lrunet", layer_reuse=2, width_mult=0.125)
    tx = create_optimizer(lambda epoch: 0.05)
    augmentation = data.Augmentation(size=16, padding=2, rotation=10.0, flip=False)
    train_set = data.load_split("digits", "train")
    order = data.epoch_order(0, 0, len(train_set.labels))
    batches, _ = data.train_batches(order, 8 * count)
    losses = {}
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices)
        put = lambda tree: jax.device_put(tree, replicated(mesh))
        call = make_train_call(augmentation, mesh)
        state = put(
            create_train_state(
                model, tx, jax.random.key(0), (32, 32, 1), num_images=1437
            )
        )
        split, key, sums = put(train_set), put(jax.random.key(1)), [0.0]
        for step in range(4):
            state = call(state, split, batches, step, step + 1, key)
            sums.append(float(state.metrics.loss))
        losses[len(devices)] = np.diff(sums)
    first, *_, last = np.abs(losses[count] / losses[1] - 1)
    differing = 0
    for leaf in jax.tree.leaves(state):
        one, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert len(others) == count - 1
        differing += sum(not np.array_equal(one, other) for other in others)
    # A mean of losses near 2, each of which float32 gives to 1e-7.
    row(
        f"first loss {first:.0e}, fourth {last:.0e}, {differing} replicas differ",
        "first loss 1e-6, none differ",
    )
    assert first < 1e-6
    assert differing == 0


@pytest.fixture
def uncached():
    """Programs that are compiled, whatever the cache has."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_benchmark_of_lrunet(dtype, monkeypatch, row):
    turns = {"step": 1.0, "inference": 0.5, "single": 0.1}
    monkeypatch.setattr(benchmark, "TURN_SECONDS", turns)
    model, batch_size = create_model("lrunet", layer_reuse=8), 256
    figures = benchmark.benchmark(
        model, (32, 32, 3), batch_size=batch_size, rounds=3, dtype=dtype
    )
    ms = {name: 1000 * figures[f"{name}_seconds"] for name in turns}
    row(
        f"N = 8, batch {batch_size}: step {ms['step']:.2f} ms, "
        f"{1000 * batch_size / ms['step']:,.0f} images/s; inference "
        f"{1000 * batch_size / ms['inference']:,.0f} images/s; one image "
        f"{ms['single']:.2f} ms; compiled in {figures['compile_seconds']:.0f} s; "
        f"{figures['temp_bytes'] / 1e6:,.0f} MB"
    )
    # No speed is promised here. (On many devices each infers the whole batch.)
    assert all(0 < value < np.inf for value in ms.values())
