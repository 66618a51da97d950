"""A NaN among the weights is seen in the loss: XLA for CPU must not drop it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights import random_variables

from lrunet_jax import create_model, ops
from lrunet_jax.train.state import cross_entropy

BATCH, CLASSES = 4, 256
# XLA drops a NaN that comes from `lax.max` in some reductions only, and where it does
# depends on their sizes. With `jax.nn.relu` all these programs lose it, but for those
# of ShuffleNet in the `cpu` lowering: LruNet's from 1024 logits on, MobileNetV2's in
# bfloat16.
FIELDS = {
    "lrunet": {"width_mult": 0.125, "layer_reuse": 1, "drop": 0.0},
    "mobilenet": {"width_mult": 0.25, "drop": 0.0},
    "mobilenet_v2": {"width_mult": 0.25, "drop": 0.0},
    "shufflenet": {"width_mult": 0.25},
    "shufflenet_v2": {"width_mult": 0.25},
}
DTYPES = {"mobilenet_v2": "bfloat16"}
# That of `tpu` has XLA's maximum, which this test would find wanting on CPU.
KEEPING_NAN = [name for name in ops.LOWERINGS if name != "tpu"]
QUICK = {("lrunet", "cpu"), ("mobilenet_v2", "cpu")}  # all of them: half a minute


def example(name):
    """A network, images and variables."""
    model = create_model(name, num_classes=CLASSES, **FIELDS[name])
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(BATCH, 32, 32, 1))
    images = jnp.asarray(images, DTYPES.get(name, "float32"))
    return model, images, random_variables(model, 1)


def with_a_nan(variables):
    """The names of kernels and biases, and `variables` with a NaN in each."""
    leaves, tree = jax.tree.flatten_with_path(variables)
    for i, (path, leaf) in enumerate(leaves):
        if path[-1].key in ("kernel", "bias"):
            poisoned = leaf.copy()
            poisoned.flat[0] = np.nan
            others = [other for _, other in leaves]
            others[i] = poisoned
            yield jax.tree_util.keystr(path), jax.tree.unflatten(tree, others)


@pytest.mark.usefixtures("optimised", "shallow")
@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in itertools.product(FIELDS, KEEPING_NAN)
    ],
)
def test_a_nan_in_a_kernel_or_bias_makes_the_loss_nan(name, lowering):
    model, images, variables = example(name)

    @jax.jit
    def losses(variables):
        evaluated = model.apply(variables, images)
        trained, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        targets = jax.nn.one_hot(jnp.zeros(BATCH, int), CLASSES)
        return [jnp.mean(cross_entropy(x, targets)) for x in (evaluated, trained)]

    with ops.lowering(lowering):
        program = losses.lower(variables).compile()
    assert np.isfinite(program(variables)).all()
    found = {path: program(poisoned) for path, poisoned in with_a_nan(variables)}
    assert [path for path, loss in found.items() if not np.isnan(loss).all()] == []


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_finite_values_and_gradients_are_those_of_jax(name):
    rng = np.random.default_rng(0)
    # No smaller one: XLA for CPU may take what is denormal for 0.
    tiny = np.finfo(np.float64).tiny
    edges = [0.0, -0.0, 6.0, np.nextafter(6, 0), np.nextafter(6, 7), tiny, -tiny]
    x = jnp.asarray(np.append(edges, rng.normal(0, 5, 1000)))
    cotangent = jnp.asarray(rng.normal(size=x.shape))

    def bits(function):
        out, vjp = jax.vjp(function, x)
        return [np.asarray(a).view(np.int64) for a in (out, *vjp(cotangent))]

    np.testing.assert_array_equal(bits(getattr(ops, name)), bits(getattr(jax.nn, name)))
