"""The original's own training steps, in float64.

The step-1 gradient of these networks is conditioned 1e4 to 1e5, so float32 shows
nothing. In float64 LruNet's ten steps agree to 1e-9 (the original's own noise, between
two memory layouts, is 1e-12). The baselines are chaotic at this learning rate: theirs
part after three steps. What the files store as float32 has a floor of 2e-7.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrunet_jax import ops
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import create_train_state
from lrunet_jax.train.step import train_step
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.state_dict import to_state_dict

WEIGHT_DECAY = 5e-4

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]


class Tolerances(NamedTuple):
    first_loss: float
    gradient: float
    losses: float
    state: float


LRUNET = Tolerances(first_loss=1e-9, gradient=1e-9, losses=1e-9, state=2e-7)
BASELINE = Tolerances(first_loss=1e-10, gradient=1e-8, losses=1e-6, state=1e-5)

NETWORKS = {
    "lrunet_r4": (10, LRUNET),
    "lrunet_w2_r3": (10, LRUNET),
    "mobilenet_w025": (3, BASELINE),
    "mobilenetv2_w025": (3, BASELINE),
    "shufflenet_w05_g3": (3, BASELINE._replace(losses=1e-5)),
    "shufflenetv2_w025": (3, BASELINE),
}


def initial_state(path):
    stored = open_model(path)
    # The original's runs were made without dropout.
    options = {"drop": 0.0} if hasattr(stored.create_model(), "drop") else {}
    model = stored.create_model().clone(**options)
    tx = create_optimizer(lambda epoch: 0.1)
    state = create_train_state(model, tx, jax.random.key(0), (32, 32, 3), num_images=1)
    state = state.replace(**stored.variables)
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(leaf, jnp.float64)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        state,
    )


def gradients(before, after):
    """Of a first step: what momentum has gathered, without the weight decay."""
    is_trace = lambda node: isinstance(node, optax.TraceState)
    nodes = jax.tree.leaves(after.opt_state, is_leaf=is_trace)
    (trace,) = (node.trace for node in nodes if is_trace(node))
    params = before.params
    return jax.tree.map(lambda t, p: t - WEIGHT_DECAY * p, trace, params)


def named(params, batch_stats):
    return to_state_dict({"params": params, "batch_stats": batch_stats}, 0)


def assert_close(found, expected, tolerance, name, floor=0.0):
    """Relative to the tensor's largest value, or absolutely where that is below it."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, name
    scale = max(np.abs(expected).max(), floor)
    error = np.abs(found - expected).max()
    assert error <= tolerance * scale, f"{name}: {error / scale:.1e}"


def assert_stored(golden, kind, found, tolerance):
    """All that the file has of the tensors `kind`, whole or sampled."""
    # Means that a norm before has made zero are rounding on both sides.
    close = functools.partial(assert_close, tolerance=tolerance, floor=1e-7)
    keys = [key for key in golden if key.split("/")[0] in (kind, f"{kind}_sample")]
    assert len(keys) >= 50
    for key in keys:
        name = key.split("/")[1]
        if key.startswith(f"{kind}_sample"):
            sample = found[name].ravel()[golden[f"{kind}_idx/{name}"]]
            close(sample, golden[key], name=key)
            norm = np.linalg.norm(found[name])
            close(norm, golden[f"{kind}_norm/{name}"], name=key)
        else:
            close(found[name], golden[key], name=key)


CASES = [(name, "cpu", steps) for name, (steps, _) in NETWORKS.items()]
# ShuffleNet has all operators but the reuse block's.
CASES += [("shufflenet_w05_g3", lowering, 1) for lowering in ("tpu", "xla")]


def steps_from(path, lowering, images, labels):
    """The state that the original began with, and those after each step."""
    states = [initial_state(path)]
    # Where nothing is optimised, XLA's convolutions take a hundred times as long, and
    # ten steps more than their compilation.
    quick = lowering == "cpu" and len(images) < 10
    options = {} if quick else {"xla_backend_optimization_level": 1}
    step = jax.jit(train_step, compiler_options=options)
    with ops.lowering(lowering):
        for i, batch in enumerate(zip(images, labels, strict=True)):
            states.append(step(states[-1], *batch, jax.random.key(i)))
    return states


@pytest.mark.parametrize(("name", "lowering", "steps"), CASES)
def test_losses_gradients_and_states_are_the_original_s(name, lowering, steps, shared):
    _, tolerances = NETWORKS[name]
    folder = shared / "golden" / "train"
    with np.load(folder / f"{name}.npz") as file:
        golden = dict(file)
    with np.load(shared / "golden" / "images.npz") as file:
        images = file[f"train/{name}"] / 255.0
    batches = images[:steps], golden["labels"][:steps]
    states = steps_from(folder / f"{name}_init.t7", lowering, *batches)

    sums = np.array([float(state.metrics.loss) for state in states])
    losses = np.diff(sums) / len(golden["labels"][0])
    expected = golden["loss64"][:steps]
    np.testing.assert_allclose(losses[0], expected[0], rtol=tolerances.first_loss)
    np.testing.assert_allclose(losses, expected, rtol=tolerances.losses)

    found = named(gradients(*states[:2]), states[0].batch_stats)
    largest = max(value for key, value in golden.items() if key.startswith("grad_norm"))
    assert {key.split("/")[1] for key in golden if key.startswith("grad_norm")} == {
        key
        for key in found
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    for key, value in golden.items():
        kind, _, tensor = key.partition("/")
        # Biases whose effect the next norm takes away have a gradient of zero, of
        # which both sides have rounding: these are compared with the largest of all.
        close = functools.partial(
            assert_close, tolerance=tolerances.gradient, name=key, floor=1e-6 * largest
        )
        if kind == "grad":
            close(found[tensor], value)
        elif kind == "grad_sample":
            close(found[tensor].ravel()[golden[f"grad_idx/{tensor}"]], value)
        elif kind == "grad_norm":
            close(np.linalg.norm(found[tensor]), value)

    after_one = named(states[1].params, states[1].batch_stats)
    assert_stored(golden, "state1", after_one, max(tolerances.state, 2e-7))
    if steps >= 3:
        after_three = named(states[3].params, states[3].batch_stats)
        assert_stored(golden, "state3", after_three, tolerances.state)
    if steps == 10:
        last = states[10]
        variables = {"params": last.params, "batch_stats": last.batch_stats}
        logits = jax.jit(last.apply_fn)(variables, images[0])
        assert_close(logits, golden["eval_logits_after_64"], 1e-9, "logits")
        final = named(last.params, last.batch_stats)
        assert_stored(golden, "final", final, tolerances.state)


# On CPU these take a minute for LruNet's step with all images in float64. With parts of
# a few images they take the same step as the lowering `cpu`, which is golden.
def lrunet_s_step(lowering, shared):
    folder = shared / "golden"
    with np.load(folder / "images.npz") as file:
        images = file["train/lrunet_r4"][:1, :4, :16, :16] / 255.0
    with np.load(folder / "train" / "lrunet_r4.npz") as file:
        labels = file["labels"][:1, :4]
    path = folder / "train" / "lrunet_r4_init.t7"
    before, after = steps_from(path, lowering, images, labels)
    return (
        after.metrics.loss,
        named(gradients(before, after), before.batch_stats),
        named(after.params, after.batch_stats),
    )


golden_step = functools.cache(functools.partial(lrunet_s_step, "cpu"))


@pytest.mark.parametrize("lowering", ["gpu", "tpu", "xla"])
def test_lrunet_takes_the_same_step_in_other_lowerings(lowering, shared):
    loss, found_gradients, found_state = lrunet_s_step(lowering, shared)
    expected_loss, expected_gradients, expected_state = golden_step(shared)
    np.testing.assert_allclose(loss, expected_loss, rtol=LRUNET.first_loss)
    close = functools.partial(assert_close, tolerance=LRUNET.gradient)
    largest = max(np.abs(value).max() for value in expected_gradients.values())
    for key, value in expected_gradients.items():
        close(found_gradients[key], value, name=key, floor=1e-6 * largest)
    for key, value in expected_state.items():
        # Means of zero are float64's rounding, 1e-16 times what was summed.
        close(found_state[key], value, name=key, floor=1e-5)
