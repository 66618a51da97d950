"""Counts of programs that are small enough to count by hand, and of texts by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, on_eight_devices, process
from jax import lax

from lrunet_jax import hlo


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def products(times):
    def function(a):
        return lax.fori_loop(0, times, lambda _, a: a @ a, a)

    return function


def test_a_loop_counts_as_often_as_it_runs():
    a = jnp.ones((16, 16))
    once = hlo.count(text_of(lambda a: a @ a, a))
    assert (once.flops, once.kernels, once.bytes) == (2 * 16**3, 1, 2 * 4 * 16**2)
    assert hlo.count(text_of(products(5), a)).flops == 5 * once.flops


def test_a_loop_counts_what_it_does_unrolled():
    def loop(unroll):
        return lambda a: lax.scan(lambda a, _: (a @ a, 0), a, length=6, unroll=unroll)

    rolled, unrolled = (
        hlo.count(text_of(loop(unroll), jnp.ones((8, 8)))) for unroll in (1, True)
    )
    assert rolled.flops == unrolled.flops == 6 * 2 * 8**3


def test_loops_in_loops_multiply():
    def function(a):
        return lax.fori_loop(0, 3, lambda _, a: products(4)(a), a)

    assert hlo.count(text_of(function, jnp.ones((8, 8)))).flops == 3 * 4 * 2 * 8**3


def test_a_step_is_one_trip_of_the_loop_whose_trips_are_an_argument():
    def call(steps, a, b):
        start = b @ b  # once a call
        return lax.fori_loop(0, steps, lambda _, a: products(4)(a), a + start)

    a = jnp.ones((8, 8))
    text = text_of(call, 3, a, a)
    assert hlo.count_step(text).flops == 4 * 2 * 8**3
    with pytest.raises(ValueError, match=r"how often loop .* runs is not known"):
        hlo.count(text)


def test_a_step_has_no_loop_whose_trips_nobody_knows():
    def inner(a):
        return lax.while_loop(lambda a: a[0, 0] < 9, lambda a: a @ a, a)

    def call(steps, a):
        return lax.fori_loop(0, steps, lambda _, a: inner(a), a)

    text = text_of(call, 3, jnp.ones((8, 8)))
    with pytest.raises(ValueError, match=r"how often loop .* runs is not known"):
        hlo.count_step(text)


@pytest.mark.parametrize("loops", [0, 2])
def test_a_step_needs_one_loop_over_the_steps(loops):
    def call(steps, a):
        for _ in range(loops):
            a = lax.fori_loop(0, steps, lambda _, a: a @ a, a @ a)
        return a

    with pytest.raises(ValueError, match=f"^{loops} of {loops} outer loops run an"):
        hlo.count_step(text_of(call, 3, jnp.ones((8, 8))))


def test_of_a_conditional_the_costliest_branch_counts():
    def function(i, a):
        return lax.switch(i, [lambda a: a, lambda a: a @ a @ a, lambda a: a @ a], a)

    assert hlo.count(text_of(function, 0, jnp.ones((8, 8)))).flops == 2 * 2 * 8**3


def test_arithmetic_is_one_an_element_and_of_floats_alone():
    def function(a, i):
        return jnp.where(a > 0, jnp.tanh(a + 1), 2 * a), jnp.sum(a), i * i

    counts = hlo.count(text_of(function, jnp.ones(16), jnp.ones(16, int)))
    assert counts.flops == 4 * 16


@pytest.mark.parametrize("gradient", [None, 0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (2, 2), "padding": "SAME", "feature_group_count": 2},
        {
            "window_strides": (1, 3),
            "padding": ((2, 0), (-1, 1)),
            "rhs_dilation": (2, 1),
        },
        {"window_strides": (1, 1), "padding": ((1, 1), (1, 0)), "lhs_dilation": (3, 2)},
    ],
)
def test_convolutions_are_what_xla_counts_them(options, gradient):
    groups = options.get("feature_group_count", 1)
    image, kernel = jnp.ones((4, 9, 7, 4)), jnp.ones((3, 2, 4 // groups, 6))

    def function(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            image, kernel, dimension_numbers=layout, **options
        )

    if gradient is not None:
        conv = function
        function = jax.grad(lambda *both: jnp.sum(conv(*both)), argnums=gradient)
    program = jax.jit(function).lower(image, kernel).compile()
    assert hlo.count(program.as_text()).flops == program.cost_analysis()["flops"]


EIGHT = """
import dataclasses, json
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from lrunet_jax import hlo

def local(a, b):
    a, _ = lax.scan(lambda a, _: (lax.psum(a @ b, "data"), None), a, length=5)
    everything = lax.all_gather(a, "data", tiled=True)
    return a + lax.psum_scatter(everything, "data", tiled=True)

mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
specs = {"in_specs": (PartitionSpec("data"), PartitionSpec())}
function = jax.shard_map(
    local, mesh=mesh, out_specs=PartitionSpec("data"), check_vma=False, **specs
)
arguments = jnp.ones((128, 32)), jnp.ones((32, 32))
text = jax.jit(function).lower(*arguments).compile().as_text()
print(json.dumps(dataclasses.asdict(hlo.count(text))))
"""


def test_collectives_count_as_often_as_they_run_and_with_the_bytes_of_a_device():
    done = process("-c", EIGHT, env=on_eight_devices())
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["collectives"] == {
        "all-reduce": {"count": 5, "bytes": 5 * 16 * 32 * 4},
        "all-gather": {"count": 1, "bytes": 128 * 32 * 4},
        "reduce-scatter": {"count": 1, "bytes": 128 * 32 * 4},
    }
    assert counts["flops"] == 5 * 2 * 16 * 32 * 32 + 16 * 32


# As XLA writes for an H100 (jax 0.12), shortened.
GPU = (ROOT / "tests/hlo/gpu.txt").read_text()


def test_asynchronous_pairs_count_once():
    counts = hlo.count(GPU)
    assert counts.collectives == {
        "all-gather": {"count": 3, "bytes": 3 * 32 * 128 * 4},
        "all-to-all": {"count": 1, "bytes": 8 * 16 * 4},
    }
    assert counts.kernels == 3 * 3 + 1


def test_a_fusion_reads_its_slices_and_writes_its_update():
    slice_and_index = 2 * 400 + 4
    update = 400 + 4 + 400
    gather = (4 + 32) * 128 * 4
    exchange = 2 * 8 * 16 * 4
    assert hlo.count(GPU).bytes == 3 * (slice_and_index + update + gather) + exchange
    assert hlo.count(GPU).flops == 3 * 100


def calling(attributes, first, second, result):
    """The text of a program that is one custom call."""
    return f"""ENTRY %main (a: {first}, b: {second}) -> {result} {{
  %a = {first} parameter(0)
  %b = {second} parameter(1)
  ROOT %result = {result} custom-call(%a, %b), {attributes}
}}"""


IMAGE, KERNEL = "f32[2,8,8,4]{3,2,1,0}", "f32[4,3,3,1]{3,2,1,0}"


@pytest.mark.parametrize(
    ("target", "first", "second", "result"),
    [
        ("Forward", IMAGE, KERNEL, IMAGE),
        ("BackwardInput", IMAGE, KERNEL, IMAGE),
        ("BackwardFilter", IMAGE, IMAGE, KERNEL),
    ],
)
def test_a_convolution_of_cudnn_and_its_gradients_have_as_many_products(
    target, first, second, result
):
    attributes = (
        f'custom_call_target="__cudnn$conv{target}", window={{size=3x3 pad=1_1x1_1}}, '
        "dim_labels=b01f_o01i->b01f, feature_group_count=4"
    )
    counts = hlo.count(calling(attributes, first, second, f"({result}, u8[64]{{0}})"))
    along_an_axis = 8 * 3 - 2  # a product at either end would be with padding
    assert counts.flops == 2 * 2 * 4 * along_an_axis**2
    sizes = {IMAGE: 2 * 8 * 8 * 4 * 4, KERNEL: 4 * 3 * 3 * 4}
    assert counts.bytes == sizes[first] + sizes[second] + sizes[result] + 64
    assert counts.kernels == 1


def test_a_product_of_cublas_counts():
    attributes = (
        'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
        '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}'
    )
    result = "(bf16[16,8]{1,0}, s8[4]{0})"
    counts = hlo.count(calling(attributes, "bf16[16,32]", "bf16[32,8]", result))
    assert counts.flops == 2 * 16 * 32 * 8
    assert counts.bytes == 2 * (16 * 32 + 32 * 8 + 16 * 8) + 4


# As libtpu 0.0.42 writes for a v5e, shortened. The inner loop's counter begins at what
# the outer loop carries, and its trips are noted nowhere.
TPU = (ROOT / "tests/hlo/tpu.txt").read_text()
PIECES = """
%start (p: f32[4,8]) -> (f32[4,8], f32[32,8], u32[]) {
  %p = f32[4,8]{1,0} parameter(0)
  %all-gather = f32[32,8]{1,0} all-gather(%p), channel_id=8, dimensions={0}
  ROOT %r = (f32[4,8]{1,0}, f32[32,8]{1,0}, u32[]) custom-call(%all-gather), \
custom_call_target="AsyncCollectiveStart"
}

%end (p.1: f32[4,8], q: f32[32,8]) -> f32[32,8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  %q = f32[32,8]{1,0} parameter(1)
  %all-gather.1 = f32[32,8]{1,0} all-gather(%p.1), channel_id=8, dimensions={0}
  ROOT %r.1 = f32[32,8]{1,0} custom-call(%p.1, %q, %all-gather.1), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[4,8]) -> f32[32,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %started = (f32[4,8]{1,0}, f32[32,8]{1,0}, u32[]) fusion(%x), kind=kCustom, \
calls=%start
  %y = f32[4,8]{1,0} get-tuple-element(%started), index=0
  %z = f32[32,8]{1,0} get-tuple-element(%started), index=1
  ROOT %ended = f32[32,8]{1,0} fusion(%y, %z), kind=kCustom, calls=%end
}
"""


def test_a_collective_that_a_tpu_does_in_pieces_counts_once():
    counts = hlo.count(PIECES)
    assert counts.collectives == {"all-gather": {"count": 1, "bytes": 32 * 8 * 4}}
    assert counts.kernels == 1


TRIPS = len(range(2, 11, 3))


def test_a_loop_s_trips_are_found_where_they_are_not_noted():
    counts = hlo.count_step(TPU)
    assert counts.flops == (3 + TRIPS) * 8 * 128  # the counter's are of integers
    assert counts.kernels == 3 + TRIPS * 3  # with the counter's copy and its sum
    assert counts.bytes == (3 + TRIPS) * 2 * 2 * 8 * 128 + TRIPS * (2 + 3) * 4


def test_estimated_cycles_are_by_module_and_of_a_step_alone():
    expected = {"stage1": TRIPS * 100, "augment": 7, "LruNet": 5, "step": 1}
    assert hlo.count_step(TPU).estimated_cycles == expected
    assert hlo.count(GPU).estimated_cycles is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("constant(2)", "parameter(2)"),  # where it begins
        ("constant(3)", "get-tuple-element(%in), index=0"),  # what a trip adds
        ("constant(3)", "constant(0)"),
        ("constant(3)", "constant(-3)"),
        ("constant(11)", "get-tuple-element(%in.1), index=0"),  # where it ends
        ("tuple(%i, %loss, %two)", "tuple(%i, %loss, %i)"),  # not the same in each step
        ("direction=LT", "direction=EQ"),
    ],
)
def test_a_loop_s_trips_are_not_guessed(old, new):
    assert old in TPU
    with pytest.raises(ValueError, match=r"loop while\.1 runs is not known"):
        hlo.count_step(TPU.replace(old, new))


@pytest.mark.parametrize(
    ("direction", "stop", "step"),
    [("LE", 11, 3), ("LT", 2, 1), ("GT", -4, -2), ("GE", -4, -2)],
)
def test_trips_are_those_of_a_range(direction, stop, step):
    text = TPU.replace("constant(3)", f"constant({step})")
    text = text.replace("constant(11)", f"constant({stop})")
    head, compared, rest = text.partition("compare(%j.1, %eleven), direction=")
    text = head + compared + direction + rest.removeprefix("LT")
    j, trips = 2, 0
    tests = {"LT": np.less, "LE": np.less_equal}
    tests |= {"GT": np.greater, "GE": np.greater_equal}
    while tests[direction](j, stop):
        j, trips = j + step, trips + 1
    assert hlo.count_step(text).flops == (3 + trips) * 8 * 128


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.count("HloModule nothing")
