"""What users of Flax and JAX try on a model, for all five networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from weights import random_variables

from lrunet_jax import create_model, ops
from lrunet_jax.errors import InputError

SMALL = {
    "lrunet": {"width_mult": 0.25, "layer_reuse": 2},
    "lrunet, odd groups": {"width_mult": 0.125, "layer_reuse": 2},
    "mobilenet": {"width_mult": 0.25},
    "mobilenet_v2": {"width_mult": 0.25},
    "shufflenet": {"width_mult": 0.25},
    "shufflenet_v2": {"width_mult": 0.25},
}

pytestmark = pytest.mark.usefixtures("shallow")
networks = pytest.mark.parametrize("name", SMALL)


@functools.cache
def small(name, shape=(4, 16, 16, 3), dtype=np.float32, **fields):
    model = create_model(name.split(",")[0], **SMALL[name], **fields)
    images = np.random.default_rng(0).uniform(size=shape).astype(dtype)
    variables = random_variables(model, shape[-1], gain=2.0, dtype=dtype)
    return model, variables, images


@networks
def test_tabulate_prints_every_layer(name):
    model = create_model(name.split(",")[0], **SMALL[name])
    images, wide = jnp.zeros((2, 32, 32, 3)), {"width": 200}
    table = model.tabulate(jax.random.key(0), images, console_kwargs=wide)
    layers = jax.eval_shape(model.init, jax.random.key(0), images)
    for layer in layers["params"]:
        assert f" {layer} " in table
    total = sum(leaf.size for leaf in jax.tree.leaves(layers["params"]))
    assert f"{total:,} " in table


@networks
def test_an_exported_program_takes_batches_of_any_size(name):
    model, variables, images = small(name)
    (size,) = export.symbolic_shape("batch")
    abstract = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    of_any_size = jax.ShapeDtypeStruct((size, *images.shape[1:]), images.dtype)
    exported = export.export(jax.jit(model.apply))(
        jax.tree.map(abstract, variables), of_any_size
    )
    for batch in (images, images[:1]):
        logits = jax.jit(model.apply)(variables, batch)
        # Bands of rows are cut otherwise; float32 sums of some hundred products.
        scale = np.abs(logits).max()
        np.testing.assert_allclose(
            exported.call(variables, batch), logits, rtol=0, atol=1e-5 * scale
        )


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@networks
def test_second_derivatives_are_those_of_differences(name):
    fields = {} if "shuffle" in name else {"drop": 0.0}
    model, variables, images = small(name, (4, 8, 8, 3), np.float64, **fields)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(4, 10))
    params = variables["params"]
    direction = jax.tree.map(
        lambda a: rng.normal(size=a.shape) * (0.1 + np.std(a)), params
    )

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable="batch_stats"
        )
        return jnp.sum(jax.nn.log_softmax(logits) * weights)

    @jax.jit
    def product_and_gradient(params):
        def along(params):
            gradient = jax.grad(loss)(params)
            products = jax.tree.map(jnp.vdot, gradient, direction)
            return sum(jax.tree.leaves(products)), gradient

        return jax.grad(along, has_aux=True)(params)

    # A shorter step meets the rounding of gradients, a longer one a ReLU's corner.
    step = 1e-8
    moved = lambda h: jax.tree.map(lambda a, d: a + h * d, params, direction)
    _, there = product_and_gradient(moved(step))
    _, back = product_and_gradient(moved(-step))
    expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), there, back)
    found, _ = product_and_gradient(params)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True):
        tolerance = 1e-2 * np.abs(b).max() + 1e-4 * largest
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=str(path))


@pytest.mark.usefixtures("x64")
@networks
def test_forward_mode_works_in_evaluation_in_xla_s_lowering(name):
    model, variables, images = small(name, (4, 16, 16, 3), np.float64)
    tangent = np.random.default_rng(1).normal(size=images.shape)
    logits = jax.jit(lambda images: model.apply(variables, images))
    # A longer step meets a ReLU's corner.
    step = 1e-7
    there, back = logits(images + step * tangent), logits(images - step * tangent)
    with ops.lowering("xla"):
        _, found = jax.jvp(jax.jit(logits.__wrapped__), (images,), (tangent,))
    expected = (there - back) / (2 * step)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(logits, (images,), (tangent,))


@networks
@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_no_images_have_no_logits(name, lowering):
    model, variables, images = small(name)
    with ops.lowering(lowering):
        logits = jax.jit(model.apply)(variables, images[:0])
    assert logits.shape == (0, 10)


@networks
def test_images_of_another_shape_are_named_with_the_one_that_is_wanted(name):
    model, variables, images = small(name)
    wanted = r"; it must be \(B, H, W, 3\)"
    for wrong in (np.moveaxis(images, 3, 1), images[..., :1]):
        shape = str(wrong.shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(InputError, match=f"images have the shape {shape}{wanted}"):
            model.apply(variables, wrong)
    stats = {"mean": np.zeros(3, np.float32), "std": np.ones(3, np.float32)}
    with pytest.raises(InputError, match=r"shape \(4, 3, 16, 16\)" + wanted):
        model.apply(variables | {"input_stats": stats}, np.moveaxis(images, 3, 1))
    for wrong in (images[0], images[..., 0], images[:, :0], images[:, :, :0]):
        for call in (
            lambda: model.apply(variables, wrong),
            lambda: model.init(jax.random.key(0), wrong),
        ):
            with pytest.raises(InputError, match=r"it must be \(B, H, W, channels\)"):
                call()
