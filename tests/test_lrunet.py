"""LruNet against the paper's figure written out as a plain loop, in float64."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from weights import random_variables

from lrunet_jax import create_model, ops
from lrunet_jax.errors import InputError
from lrunet_jax.models import LruNet

# --- The network, NHWC, with XLA's own convolutions and a Python loop -------------


def plain_conv(x, kernel, stride=1, groups=1):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def plain_norm(x, params, stats, train):
    if train:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        n = x[..., 0].size
        new = {
            "mean": 0.9 * stats["mean"] + 0.1 * mean,
            "var": 0.9 * stats["var"] + 0.1 * var * n / (n - 1),
        }
    else:
        mean, var, new = stats["mean"], stats["var"], stats
    x = (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    return x, new


def plain_shuffle(x):
    half = x.shape[-1] // 2
    x = jnp.concatenate([x[..., half:], x[..., :half]], -1)
    x = x.reshape(*x.shape[:-1], 2, half)
    return jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], 2 * half)


def plain_pool(x):
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def plain_block(x, params, stats, train, kernels=None):
    """`kernels` gives every iteration a pair of its own."""
    iteration_norms, iteration_stats = params["iterations"], stats["iterations"]
    count = len(iteration_norms["dw_bn_list"]["scale"])
    shared = (params["dw"]["kernel"], params["pw"]["kernel"])
    new = []
    for i in range(count):
        norms = jax.tree.map(lambda a: a[i], iteration_norms)
        running = jax.tree.map(lambda a: a[i], iteration_stats)
        dw, pw = kernels[i] if kernels else shared
        y = plain_conv(x, dw, groups=x.shape[-1])
        y, dw_new = plain_norm(y, norms["dw_bn_list"], running["dw_bn_list"], train)
        y = plain_conv(y, pw, groups=8)
        y, pw_new = plain_norm(y, norms["pw_bn_list"], running["pw_bn_list"], train)
        x = jnp.maximum(y + x, 0)
        if i < count - 1:
            x = plain_shuffle(x)
        new.append({"dw_bn_list": dw_new, "pw_bn_list": pw_new})
    return x, {"iterations": jax.tree.map(lambda *a: jnp.stack(a), *new)}


def plain_lrunet(variables, x, train, stem_order=None):
    params, stats, new = variables["params"], variables["batch_stats"], {}
    x = plain_conv(x, params["features_0"]["kernel"], stride=2)
    x, new["features_1"] = plain_norm(
        x, params["features_1"], stats["features_1"], train
    )
    x = jnp.maximum(x, 0)
    if stem_order is not None:
        x = x[..., stem_order]
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        x, new[stage] = plain_block(x, params[stage], stats[stage], train)
        x = x if stage == "stage3" else plain_pool(x)
        x = x if stage == "stage4" else jnp.concatenate([x, x], -1)
    x = plain_conv(x, params["classifier_0"]["kernel"], groups=8)
    x, new["classifier_1"] = plain_norm(
        x, params["classifier_1"], stats["classifier_1"], train
    )
    x = plain_conv(jnp.maximum(x, 0), params["classifier_4"]["kernel"])
    x = jnp.maximum(x + params["classifier_4"]["bias"], 0)
    return x.mean((1, 2)), new


# --- Comparison -------------------------------------------------------------------


def assert_close(found, wanted, tolerance=1e-10):
    """Relative to each tensor's largest value; sums of up to 1e5 float64 products."""
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True):
        error = np.abs(np.asarray(a) - np.asarray(b)).max()
        scale = np.abs(np.asarray(b)).max()
        assert error <= tolerance * scale + 1e-13, jax.tree_util.keystr(path)


def loss_and_gradients(forward, variables, labels):
    def loss(params):
        logits, stats = forward({**variables, "params": params})
        return jnp.mean(jnp.sum(jnp.square(logits - labels), -1)), (logits, stats)

    gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (logits, stats)), grads = gradients(variables["params"])
    return {"loss": value, "logits": logits, "stats": stats, "grads": grads}


IMAGES = np.random.default_rng(1).uniform(size=(4, 16, 16, 3))
LABELS = np.random.default_rng(2).normal(size=(4, 5))


def variables_of(width):
    model = LruNet(5, width, 3, drop=0.0)
    return model, random_variables(model, 3, dtype=np.float64)


@functools.cache
def plain_results(train, width):
    order = np.arange(round(64 * width))
    plain = lambda variables: plain_lrunet(variables, IMAGES, train, order)
    return loss_and_gradients(plain, variables_of(width)[1], LABELS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("lowering", "width"),
    [
        pytest.param("cpu", 0.25, marks=pytest.mark.slow),
        pytest.param("cpu", 0.375, marks=pytest.mark.slow),
        ("gpu", 0.25),
        ("gpu", 0.375),
        ("tpu", 0.25),
        ("xla", 0.25),
    ],
)
def test_every_lowering_is_the_plain_loop(train, lowering, width):
    # Width 0.25 keeps XLA's slow float64 convolutions short; at 0.375 a group of
    # channels is not made of equal parts of the halves.
    model, variables = variables_of(width)

    def ours(variables):
        logits, updates = model.apply(
            variables, IMAGES, train=train, mutable=["batch_stats"]
        )
        return logits, updates["batch_stats"]

    with ops.lowering(lowering):
        found = loss_and_gradients(ours, variables, LABELS)
    wanted = copy.deepcopy(plain_results(train, width))
    # The first norm's bias cancels in the second norm: its gradient is zero, and what
    # the plain loop has there is rounding.
    if train:
        for stage in ("stage1", "stage2", "stage3", "stage4"):
            for result in (found, wanted):
                bias = result["grads"][stage]["iterations"]["dw_bn_list"].pop("bias")
                assert np.abs(bias).max() < 1e-12
    assert_close(found, wanted)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("width", [0.375, 0.5, 1.5, 2.0])
def test_the_stem_is_repeated_or_cut_to_the_first_stage(width):
    model = LruNet(3, width, 1)
    variables = random_variables(model, 1, dtype=np.float64)
    images = np.random.default_rng(1).uniform(size=(2, 8, 8, 1))
    order = np.arange(round(64 * width)) % 64
    expected, _ = plain_lrunet(variables, images, False, order)
    assert_close(jax.jit(model.apply)(variables, images), expected)
    assert variables["params"]["features_0"]["kernel"].shape == (3, 3, 1, 64)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_the_gradient_of_a_shared_kernel_is_the_sum_over_iterations(lowering):
    model = LruNet(3, 0.25, 3, drop=0.0)
    variables = random_variables(model, 1, dtype=np.float64)
    x = np.random.default_rng(1).uniform(size=(4, 4, 4, 16))
    params = variables["params"]["stage1"]
    stats = variables["batch_stats"]["stage1"]
    names = ("dw_bn_list", "pw_bn_list")
    norms = [
        [params["iterations"][name][leaf] for leaf in ("scale", "bias")]
        for name in names
    ]

    def ours(dw, pw):
        carry = ops.begin_reuse(jnp.transpose(x, (3, 1, 2, 0)), lowering=lowering)
        for i in range(3):
            of_iteration = [ops.Norm(scale[i], bias[i]) for scale, bias in norms]
            carry, _ = ops.reuse(carry, ops.ReuseWeights(dw, pw, *of_iteration))
        return jnp.sum(jnp.square(ops.end_reuse(carry)))

    def untied(kernels):
        out, _ = plain_block(x, params, stats, True, kernels)
        return jnp.sum(jnp.square(out))

    pair = (params["dw"]["kernel"], params["pw"]["kernel"])
    shared = jax.grad(ours, argnums=(0, 1))(*pair)
    each = jax.grad(untied)([pair] * 3)
    assert_close(shared, jax.tree.map(lambda *g: sum(g), *each))
    assert not np.allclose(each[0][0], each[1][0])


def test_only_norms_grow_with_the_iterations():
    shapes = [
        jax.eval_shape(
            LruNet(layer_reuse=n).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )["params"]
        for n in (2, 5)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    for path, two in jax.tree_util.tree_leaves_with_path(shapes[0]):
        five = functools.reduce(lambda tree, key: tree[key.key], path, shapes[1])
        if any(key.key == "iterations" for key in path):
            assert (two.shape[0], five.shape[0]) == (2, 5)
            assert two.shape[1:] == five.shape[1:]
        else:
            assert two.shape == five.shape


def test_each_iteration_has_norms_and_statistics_of_its_own():
    model = LruNet(3, 0.25, 3, drop=0.0)
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
    variables = random_variables(model, 3)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updates = train(variables, images)
    means = updates["batch_stats"]["stage2"]["iterations"]["dw_bn_list"]["mean"]
    assert means.shape == (3, 64)
    assert not np.allclose(means[0], means[1])
    assert not np.allclose(means[1], means[2])
    apply = jax.jit(model.apply)
    for i in range(3):
        changed = copy.deepcopy(variables)
        changed["params"]["stage2"]["iterations"]["pw_bn_list"]["scale"][i] = 3.0
        assert not np.allclose(apply(changed, images), apply(variables, images))


def test_weights_begin_as_the_original_s():
    images = jnp.zeros((1, 32, 32, 3))
    init = jax.jit(LruNet(layer_reuse=2).init)
    params = init(jax.random.key(0), images)["params"]
    for name, fan_out in (("dw", 9 * 1024), ("pw", 512)):
        kernel = np.asarray(params["stage4"][name]["kernel"])
        # The standard error of a standard deviation of n values is sd / sqrt(2 n).
        expected = (2 / fan_out) ** 0.5
        error = expected / (2 * kernel.size) ** 0.5
        assert abs(kernel.std() - expected) < 5 * error
        assert np.abs(kernel).max() > 2.5 * expected  # not truncated at 2
    bias = np.asarray(params["classifier_4"]["bias"])
    assert np.abs(bias).max() <= 1 / 16
    assert len(set(bias.tolist())) == 10
    norms = params["stage1"]["iterations"]["dw_bn_list"]
    assert (norms["scale"] == 1).all()
    assert (norms["bias"] == 0).all()


def test_logits_are_never_negative_and_any_image_size_works():
    model = create_model("lrunet", width_mult=0.125, layer_reuse=1, num_classes=7)
    for size in (28, 33):
        images = jax.random.normal(jax.random.key(1), (2, size, size, 1))
        variables = random_variables(model, 1, seed=size)
        logits = jax.jit(model.apply)(variables, images)
        assert logits.shape == (2, 7)
        assert (logits >= 0).all()


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("layer_reuse", 0, r"in \[1, 1,000\]"),
        ("layer_reuse", 10**8, r"in \[1, 1,000\]"),
        ("width_mult", 0.3, "multiple of 0.125"),
        ("width_mult", 0.0, r"in \(0, 100\]"),
        ("drop", 1.0, r"in \[0, 1\)"),
        ("drop", 1 - 1e-12, r"in \[0, 1\), in float32 too"),
        ("num_classes", 0, r"in \[1, 1,000,000\]"),
        ("num_classes", 10**9, r"in \[1, 1,000,000\]"),
        ("lowering", "xla", "known are drop, layer_reuse, num_classes, width_mult"),
        ("layer_ruse", 3, "did you mean 'layer_reuse'"),
    ],
)
def test_a_bad_field_is_named_with_what_is_allowed(field, value, allowed):
    with pytest.raises(InputError, match=allowed) as error:
        create_model("lrunet", **{field: value})
    assert str(value) in str(error.value) or field in str(error.value)


def test_an_unknown_model_is_refused():
    with pytest.raises(InputError, match="did you mean 'lrunet'"):
        create_model("lrunt")
