"""The context that chooses between lowerings."""

import concurrent.futures
import types

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from weights import random_variables

from lrunet_jax import create_model, ops
from lrunet_jax.errors import InputError
from lrunet_jax.ops.lowerings import choose

X = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6, 6, 2)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 1, 16)), jnp.float32)


def traced(function, *args):
    """The program of a function, as text."""
    return str(jax.make_jaxpr(function)(*args))


def test_contexts_nest_and_end():
    assert ops.resolve() == "cpu"  # of the platform
    with ops.lowering("tpu"):
        assert ops.resolve() == "tpu"
        with ops.lowering("xla"):
            assert ops.resolve() == "xla"
        with ops.lowering("auto"):
            assert ops.resolve() == "cpu"
        assert ops.resolve("xla") == "xla"  # an argument comes first
        assert ops.resolve() == "tpu"
    assert ops.resolve() == "cpu"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("PJRT C API\ncuda 13000", "gpu"), ("PJRT C API\nrocm 60300", "xla")],
)
def test_of_gpus_only_nvidia_s_get_the_lowering_for_them(
    monkeypatch, version, expected
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    client = types.SimpleNamespace(platform_version=version)
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: client)
    assert ops.resolve() == expected


def test_a_context_that_is_kept_does_not_outlive_its_end():
    kept = ops.lowering("tpu")
    with kept:
        assert ops.resolve() == "tpu"
    assert ops.resolve() == "cpu"

    @ops.lowering("xla")
    def inside():
        return ops.resolve()

    assert [inside(), inside(), ops.resolve()] == ["xla", "xla", "cpu"]


@pytest.mark.parametrize("name", ["fast", "mapped", "", "CPU"])
def test_a_wrong_name_is_refused_where_it_is_given(name):
    with pytest.raises(InputError, match="known are auto, cpu, gpu, tpu, xla"):
        ops.lowering(name)
    assert ops.resolve() == "cpu"


def test_a_compiled_function_is_traced_anew_in_each_context():
    seen = []

    @jax.jit
    def function(x):
        seen.append(ops.resolve())
        return ops.depthwise(x, KERNEL)

    for _ in range(2):
        for name in ops.LOWERINGS:
            with ops.lowering(name):
                function(X)
    assert seen == list(ops.LOWERINGS)
    function(X)  # `auto` is a context of its own
    assert seen == [*ops.LOWERINGS, "cpu"]


def test_a_thread_begins_with_auto():
    with ops.lowering("tpu"), concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(ops.resolve).result() == "cpu"


def test_an_operator_without_a_lowering_of_a_name_takes_xla_s():
    assert choose({"xla": 1, "tpu": 2}, "cpu") == 1
    assert choose({"xla": 1, "tpu": 2}, "tpu") == 2
    for lowering in ("tpu", "xla"):
        with ops.lowering(lowering):
            assert "reduce_window" in traced(ops.max_pool, X)
    assert "reduce_window" not in traced(ops.max_pool, X)


def batch_norm(x):
    ones = jnp.ones(len(x))
    return ops.batch_norm(x, ops.Norm(ones, ones))[0]


def block(x):
    ones = lambda size: ops.Norm(jnp.ones(size), jnp.ones(size))
    weights = ops.ReuseWeights(
        dw=jnp.ones((3, 3, 1, 32)),
        pw=jnp.ones((1, 1, 4, 16)),
        dw_norm=ones(32),
        pw_norm=ones(16),
    )
    carry, _ = ops.reuse(ops.begin_reuse(x), weights)
    return ops.end_reuse(carry)


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: ops.depthwise(x, KERNEL),
        lambda x: ops.pointwise(x, jnp.ones((1, 1, 2, 16)), groups=8),
        lambda x: ops.conv(x, jnp.ones((3, 3, 16, 4))),
        ops.max_pool,
        ops.avg_pool,
        ops.materialise,
        batch_norm,
        block,
    ],
    ids=[
        "depthwise",
        "pointwise",
        "conv",
        "max_pool",
        "avg_pool",
        "materialise",
        "norm",
        "reuse",
    ],
)
@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_a_gradient_is_of_the_lowering_that_the_operator_was_called_in(
    operator, lowering
):
    with ops.lowering(lowering):
        out, vjp = jax.vjp(operator, X)
        inside = traced(vjp, out)
    assert traced(vjp, out) == inside
    other = "xla" if lowering == "cpu" else "cpu"
    with ops.lowering(other):
        assert traced(vjp, out) == inside


def test_a_network_s_program_follows_the_context_and_its_fields_do_not():
    model = create_model("lrunet", width_mult=0.25, layer_reuse=2)
    images = jnp.zeros((2, 16, 16, 1))
    variables = random_variables(model, 1)
    texts = {}
    for name in ops.LOWERINGS:
        with ops.lowering(name):
            texts[name] = jax.jit(model.apply).lower(variables, images).as_text()
    assert len(set(texts.values())) == len(ops.LOWERINGS)
    assert "feature_group_count = 16" in texts["xla"]
    assert "feature_group_count = 16" not in texts["cpu"] + texts["tpu"]
    assert set(vars(model)) & {"lowering", "unroll"} == set()
