"""Every lowering of every operator against XLA's own, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from lrunet_jax import ops
from lrunet_jax.errors import InputError
from lrunet_jax.ops.channel_shuffle import shuffle, unshuffle

# Sums of at most a few thousand products of float64, 2e-16 each.
TOLERANCE = 1e-12

lowerings = st.sampled_from(ops.LOWERINGS)
sizes = st.integers(1, 9)
batches = st.sampled_from([1, 2, 5])
strides = st.sampled_from([1, 2])
seeds = st.integers(0, 1000)
examples = settings(max_examples=25)

pytestmark = pytest.mark.usefixtures("x64")


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def reference_conv(x, kernel, stride, groups):
    """`lax.conv_general_dilated` as Flax would call it, in NHWC."""
    pad = kernel.shape[0] // 2
    out = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return jnp.transpose(out, (3, 1, 2, 0))


def assert_same(function, reference, *args):
    """Values and gradients to all arguments agree."""
    shape = jax.eval_shape(reference, *args).shape
    cotangent = normal(7, *shape)

    @jax.jit  # as one program: by themselves, dozens would be compiled for each shape
    def both(cotangent, *args):
        pairs = [jax.vjp(f, *args) for f in (function, reference)]
        return [(out, *vjp(cotangent)) for out, vjp in pairs]

    found, wanted = both(cotangent, *args)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == jnp.float64
        scale = max(1e-300, float(jnp.max(jnp.abs(b))))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


@examples
@given(
    lowering=lowerings,
    channels=st.sampled_from([1, 2, 3, 8]),
    multiplier=st.sampled_from([1, 2, 3]),
    height=sizes,
    width=sizes,
    batch=batches,
    stride=strides,
    seed=seeds,
)
def test_depthwise_is_a_grouped_convolution(
    lowering, channels, multiplier, height, width, batch, stride, seed
):
    x = normal(seed, channels, height, width, batch)
    kernel = normal(seed + 1, 3, 3, 1, channels * multiplier)
    assert_same(
        lambda x, k: ops.depthwise(x, k, stride=stride, lowering=lowering),
        lambda x, k: reference_conv(x, k, stride, channels),
        x,
        kernel,
    )


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_depthwise_in_many_blocks_of_channels(lowering):
    # 256 channels: two blocks of the width of a TPU's matrix unit.
    x, kernel = normal(0, 256, 8, 8, 40), normal(1, 3, 3, 1, 512)
    assert_same(
        lambda x, k: ops.depthwise(x, k, lowering=lowering),
        lambda x, k: reference_conv(x, k, 1, 256),
        x[:, :, :, :2] if lowering != "cpu" else x[:, :4, :4],
        kernel,
    )


@examples
@given(
    lowering=lowerings,
    groups=st.sampled_from([1, 2, 3, 8]),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    height=sizes,
    batch=batches,
    seed=seeds,
)
def test_pointwise_is_a_grouped_1x1_convolution(
    lowering, groups, inputs, outputs, height, batch, seed
):
    x = normal(seed, groups * inputs, height, 3, batch)
    kernel = normal(seed + 1, 1, 1, inputs, groups * outputs)
    assert_same(
        lambda x, k: ops.pointwise(x, k, groups=groups, lowering=lowering),
        lambda x, k: reference_conv(x, k, 1, groups),
        x,
        kernel,
    )


@examples
@given(
    lowering=lowerings,
    inputs=st.sampled_from([1, 3]),
    height=sizes,
    width=sizes,
    batch=batches,
    stride=strides,
    seed=seeds,
)
def test_conv_is_a_dense_3x3_convolution(
    lowering, inputs, height, width, batch, stride, seed
):
    x = normal(seed, inputs, height, width, batch)
    kernel = normal(seed + 1, 3, 3, inputs, 5)
    assert_same(
        lambda x, k: ops.conv(x, k, stride=stride, lowering=lowering),
        lambda x, k: reference_conv(x, k, stride, 1),
        x,
        kernel,
    )


@pytest.mark.parametrize(("stride", "height"), [(1, 9), (2, 9), (2, 12)])
def test_conv_in_many_bands_of_rows(stride, height):
    # 2 MB are one to three rows of the nine views of 600 images, 9 columns wide.
    x, kernel = normal(0, 3, height, 9, 600), normal(1, 3, 3, 3, 4)
    assert_same(
        lambda x, k: ops.conv(x, k, stride=stride, lowering="cpu"),
        lambda x, k: reference_conv(x, k, stride, 1),
        x,
        kernel,
    )


@examples
@given(
    lowering=lowerings,
    channels=st.sampled_from([1, 3]),
    height=sizes,
    width=sizes,
    batch=batches,
    seed=seeds,
    levels=st.sampled_from([2, 1000]),
)
def test_max_pool_gives_the_gradient_to_the_first_maximum(
    lowering, channels, height, width, batch, seed, levels
):
    # Few levels make many ties.
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.integers(0, levels, (channels, height, width, batch)), float)
    cotangent = normal(seed, channels, -(-height // 2), -(-width // 2), batch)

    @jax.jit
    def pool(x, cotangent):
        out, vjp = jax.vjp(lambda x: ops.max_pool(x, lowering=lowering), x)
        return out, *vjp(cotangent)

    out, grad = pool(x, cotangent)
    expected, expected_grad = pool_by_hand(np.asarray(x), np.asarray(cotangent))
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_allclose(grad, expected_grad, rtol=0, atol=1e-12)


def pool_by_hand(x, cotangent):
    """3x3, stride 2, padding 1, window by window: row by row, the first maximum."""
    out, grad = np.zeros(cotangent.shape), np.zeros(x.shape)
    for c, i, j, b in np.ndindex(*cotangent.shape):
        rows = range(max(0, 2 * i - 1), min(x.shape[1], 2 * i + 2))
        columns = range(max(0, 2 * j - 1), min(x.shape[2], 2 * j + 2))
        best = max(((r, s) for r in rows for s in columns), key=lambda p: x[c, *p, b])
        out[c, i, j, b] = x[c, *best, b]
        grad[c, *best, b] += cotangent[c, i, j, b]
    return out, grad


@examples
@given(
    lowering=lowerings,
    channels=st.sampled_from([1, 3]),
    height=sizes,
    width=sizes,
    batch=batches,
    seed=seeds,
)
def test_avg_pool_counts_the_padding(lowering, channels, height, width, batch, seed):
    x = normal(seed, channels, height, width, batch)
    box = jnp.kron(jnp.eye(channels), jnp.full((3, 3, 1, 1), 1 / 9))
    assert_same(
        lambda x: ops.avg_pool(x, lowering=lowering),
        lambda x: reference_conv(x, box, 2, 1),
        x,
    )


def test_channel_shuffle_takes_one_channel_of_each_group():
    x = jnp.arange(6.0).reshape(6, 1, 1, 1)
    assert ops.channel_shuffle(x, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]
    assert ops.channel_shuffle(x, 3).ravel().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_batch_norm_is_its_formula(mean):
    x, scale, bias = normal(0, 6, 5, 4, 3) + mean, normal(1, 6), normal(2, 6)
    out, moments = ops.batch_norm(x, ops.Norm(scale, bias))
    flat = np.asarray(x).reshape(6, -1)
    np.testing.assert_allclose(moments.mean, flat.mean(1), rtol=1e-13, atol=1e-14)
    unbiased = flat.var(1, ddof=1)
    np.testing.assert_allclose(moments.variance, unbiased, rtol=1e-13)
    expected = (flat - flat.mean(1)[:, None]) / np.sqrt(flat.var(1) + 1e-5)[:, None]
    expected = expected * np.asarray(scale)[:, None] + np.asarray(bias)[:, None]
    np.testing.assert_allclose(out.reshape(6, -1), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_batch_norm_s_gradient_is_that_of_its_formula(lowering):
    x, scale, bias = normal(0, 6, 5, 4, 3) + 2, normal(1, 6), normal(2, 6)

    def formula(x, scale, bias):
        mean = jnp.mean(x, (1, 2, 3), keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), (1, 2, 3), keepdims=True)
        per_channel = lambda a: a.reshape(6, 1, 1, 1)
        normal = (x - mean) / jnp.sqrt(variance + 1e-5)
        return normal * per_channel(scale) + per_channel(bias)

    def ours(x, scale, bias):
        return ops.batch_norm(x, ops.Norm(scale, bias), lowering=lowering)[0]

    assert_same(ours, formula, x, scale, bias)


@pytest.mark.parametrize(
    ("operator", "shapes"),
    [
        (ops.depthwise, [(16, 8, 8, 4), (3, 3, 1, 32)]),
        (functools.partial(ops.pointwise, groups=8), [(32, 8, 8, 4), (1, 1, 4, 16)]),
        (ops.conv, [(3, 8, 8, 4), (3, 3, 3, 16)]),
    ],
    ids=["depthwise", "pointwise", "conv"],
)
@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_bfloat16_gradients_are_those_of_float32(operator, shapes, lowering):
    x, kernel = (normal(i, *shape).astype("float32") for i, shape in enumerate(shapes))

    def gradients(x, kernel, lowering):
        out, vjp = jax.vjp(lambda *a: operator(*a, lowering=lowering), x, kernel)
        return vjp(normal(7, *out.shape).astype(out.dtype))

    gradients = jax.jit(gradients, static_argnames="lowering")
    found = gradients(x.astype("bfloat16"), kernel, lowering)
    assert [grad.dtype for grad in found] == ["bfloat16", "float32"]
    for grad, expected in zip(found, gradients(x, kernel, "xla"), strict=True):
        # Factors and sums have 8 bits each: some 2 ** -7 of the largest.
        scale = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(grad, expected, rtol=0, atol=2**-6 * scale)
        assert not np.array_equal(grad, expected)


@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_bfloat16_gradients_of_an_iteration_are_those_of_float32(lowering):
    """Of LruNet's own operator, with both of its norms."""
    shapes = [(16, 8, 8, 4), (3, 3, 1, 32), (1, 1, 4, 16), (32,), (32,), (16,), (16,)]
    x, *weights = (normal(i, *s).astype("float32") for i, s in enumerate(shapes))

    def gradients(x, weights, lowering):
        def iterate(x, dw, pw, scale, bias, pw_scale, pw_bias):
            norms = ops.Norm(scale, bias), ops.Norm(pw_scale, pw_bias)
            carry = ops.begin_reuse(x, lowering=lowering)
            return ops.end_reuse(ops.reuse(carry, ops.ReuseWeights(dw, pw, *norms))[0])

        out, vjp = jax.vjp(iterate, x, *weights)
        return vjp(normal(7, *out.shape).astype(out.dtype))

    gradients = jax.jit(gradients, static_argnames="lowering")
    found = gradients(x.astype("bfloat16"), weights, lowering)
    assert [grad.dtype for grad in found] == ["bfloat16"] + ["float32"] * 6
    pairs = list(zip(found, gradients(x, weights, "xla"), strict=True))
    largest = max(float(jnp.linalg.norm(expected)) for _, expected in pairs)
    grad, _ = pairs.pop(
        4
    )  # the bias before a norm: of its gradient, 0, rounding is left
    assert np.linalg.norm(grad) < 2**-7 * largest
    for grad, expected in pairs:
        grad = np.asarray(grad, np.float32).ravel()
        expected = np.asarray(expected).ravel()
        # Each number is 2 ** -8 off, a sum cancels most of its terms, and where the sum
        # is near 0 a ReLU decides otherwise; what they have in common is as long.
        assert np.linalg.norm(grad - expected) < 0.15 * np.linalg.norm(expected)
        common = np.vdot(grad, expected) / np.vdot(expected, expected)
        assert abs(common - 1) < 0.05, common


@pytest.mark.parametrize("moments", ["batch", "running"])
@pytest.mark.parametrize("lowering", [n for n in ops.LOWERINGS if n != "xla"])
def test_a_block_s_gradients_are_those_of_xla(lowering, moments):
    """Of a block's input as well, some of which is negative: no ReLU stands before."""
    shapes = [(16, 4, 4, 4), (3, 3, 1, 32), (1, 1, 4, 16), (32,), (32,), (16,), (16,)]
    arguments = [normal(i, *s) for i, s in enumerate(shapes)]
    size = lambda count: ops.Moments(jnp.ones(count), jnp.full(count, 2.0))
    running = (size(32), size(16)) if moments == "running" else (None, None)

    def block(lowering, x, dw, pw, scale, bias, pw_scale, pw_bias):
        carry = ops.begin_reuse(x, lowering=lowering)
        norms = (
            ops.Norm(scale, bias, running[0]),
            ops.Norm(pw_scale, pw_bias, running[1]),
        )
        for _ in range(3):
            carry, _ = ops.reuse(carry, ops.ReuseWeights(dw, pw, *norms))
        return ops.end_reuse(carry)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(lowering):
        out, vjp = jax.vjp(functools.partial(block, lowering), *arguments)
        return vjp(normal(7, *out.shape))

    for found, expected in zip(gradients(lowering), gradients("xla"), strict=True):
        scale = max(float(jnp.max(jnp.abs(expected))), 1.0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def test_variance_survives_a_mean_of_a_hundred_standard_deviations():
    rng = np.random.default_rng(0)
    x = rng.normal(100, 1, (4, 16, 16, 64))
    scale, bias = np.ones(4), np.zeros(4)
    exact, _ = ops.batch_norm(jnp.asarray(x), ops.Norm(scale, bias))
    x32, *norm = (jnp.asarray(a, jnp.float32) for a in (x, scale, bias))
    out, moments = ops.batch_norm(x32, ops.Norm(*norm))
    assert out.dtype == moments.variance.dtype == jnp.float32
    # 1e-4 of a standard deviation: float32 itself places the pixels to 8e-6.
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-4)
    np.testing.assert_allclose(moments.variance, x.var((1, 2, 3), ddof=1), rtol=1e-4)


@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_bfloat16_goes_in_and_out(lowering):
    x = jnp.ones((8, 4, 4, 2), jnp.bfloat16)
    dw = ops.depthwise(x, jnp.ones((3, 3, 1, 16), jnp.float32), lowering=lowering)
    kernel = jnp.ones((1, 1, 2, 8), jnp.float32)
    pw = ops.pointwise(dw, kernel, groups=8, lowering=lowering)
    assert dw.dtype == pw.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pw[:, 1, 1], 18)


@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_materialise_is_the_identity_and_so_is_its_gradient(lowering):
    x, weights = normal(0, 2, 3, 3, 4), normal(1, 2, 3, 3, 4)

    def loss(x):
        return (ops.materialise(x, lowering=lowering) * weights).sum()

    np.testing.assert_array_equal(ops.materialise(x, lowering=lowering), x)
    np.testing.assert_array_equal(jax.grad(loss)(x), weights)


def test_what_is_materialised_is_computed_once(optimised):
    def residual_sums(x, count):
        for _ in range(count):
            sums = x + x.mean((1, 2, 3), keepdims=True)
            x = ops.materialise(sums, lowering="cpu")
        return x

    with jax.default_device(jax.devices("cpu")[0]):
        x = normal(0, 8, 8, 8, 16)

    def flops(count):
        compiled = jax.jit(residual_sums, static_argnums=1).lower(x, count).compile()
        return compiled.cost_analysis()["flops"]

    # In XLA's hands, the sixth sum computes the five before it anew: 2.2 times as many.
    assert flops(6) == 6 * flops(1)


def test_an_unknown_lowering_is_refused():
    with pytest.raises(InputError, match=r"'fast'.*auto, cpu, gpu, tpu, xla"):
        ops.depthwise(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), lowering="fast")


def test_unshuffle_undoes_shuffle():
    x = normal(0, 16, 2, 2, 1)
    np.testing.assert_array_equal(unshuffle(shuffle(x)), x)
    # Swapped halves, interleaved: 0..7 becomes 4 0 5 1 6 2 7 3.
    order = shuffle(jnp.arange(8.0).reshape(8, 1, 1, 1)).ravel()
    np.testing.assert_array_equal(order, [4, 0, 5, 1, 6, 2, 7, 3])
