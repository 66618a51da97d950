"""Costs against the published table and against sums by hand."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest
from conftest import command
from jax.extend.core import jaxprs_in_params

from lrunet_jax import create_model, ops
from lrunet_jax.data import dataset_info
from lrunet_jax.models import abstract_variables, list_layers, summarise
from lrunet_jax.weights.published import PUBLISHED

# Parameters, those of convolutions and linear layers, multiply-accumulates: measured
# on the original.
COSTS = {
    "cifar10-lru1": (131_402, 125_002, 3_016_704),
    "cifar10-lru14": (206_282, 125_002, 35_497_984),
    "cifar10-mobilenet-025x": (215_642, 210_170, 4_020_736),
    "cifar10-mobilenetv2-025x": (249_122, 238_674, 6_332_672),
    "cifar10-shufflenet-05x": (228_565, 216_697, 10_040_448),
    "cifar10-shufflenetv2-025x": (211_082, 205_066, 6_233_088),
    "cifar100-lru1-2x": (513_956, 501_284, 9_576_448),
    "cifar100-lru14-2x": (663_716, 501_284, 122_249_216),
    "cifar100-mobilenet-0.4x": (567_217, 558_495, 9_779_396),
    "cifar100-mobilenetv2-0.4x": (603_248, 588_268, 13_349_184),
    "cifar100-shufflenet-075x": (559_633, 541_837, 21_928_032),
    "cifar100-shufflenetv2-075x": (568_408, 559_004, 15_334_528),
    "fashionmnist-lru1": (130_250, 123_850, 2_460_672),
    "fashionmnist-lru10": (182_090, 123_850, 22_908_672),
    "fmnist-mobilenet-025x": (215_498, 210_026, 3_709_360),
    "fmnist-mobilenetv2-025x": (248_978, 238_530, 5_425_316),
    "fmnist-shufflenet-05x": (228_349, 216_481, 7_983_174),
    "fmnist-shufflenetv2-025x": (210_650, 204_634, 5_061_120),
}


@pytest.mark.slow
def test_the_published_costs_come_out_to_the_digit():
    result = command("summary", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {
        row["name"]: (row["params"], row["conv_params"], row["macs"]) for row in rows
    } == COSTS
    assert COSTS.keys() == PUBLISHED.keys()
    table = command("summary")
    for row in rows:
        for field in ("params", "conv_params", "macs", "activation_bytes"):
            assert f" {row[field]:,} " in table.stdout


def test_layers_are_listed_one_by_one():
    layers = list_layers(create_model("lrunet", layer_reuse=3), (32, 32, 3))
    assert [layer.name for layer in layers[:3]] == [
        "features_0",
        "stage1/dw",
        "stage1/pw",
    ]
    depthwise = layers[1]
    assert depthwise.kernel == (3, 3, 1, 128)
    assert depthwise.output == (16, 16, 128)
    assert depthwise.times == 3
    assert depthwise.params == 9 * 128
    assert depthwise.macs == 3 * 16 * 16 * 128 * 9
    assert depthwise.activation_bytes == 3 * 16 * 16 * 128 * 4
    last = layers[-1]
    assert last.name == "classifier_4"
    assert last.params == 256 * 10 + 10
    assert last.macs == 2 * 2 * 256 * 10


def test_an_average_pooling_is_no_multiplication():
    model = create_model("shufflenet", width_mult=0.5)
    layers = list_layers(model, (32, 32, 3))
    assert len(layers) == 1 + 16 * 3 + 1
    costs = summarise(model, (32, 32, 3))
    assert (
        costs["macs"]
        == sum(
            math.prod(layer.output) * math.prod(layer.kernel[:3])
            for layer in layers[:-1]
        )
        + 480 * 10
    )


def traced_costs(model, image_shape):
    """Kernels and multiply-accumulates, read off the program of a training step.

    In the lowering that calls each convolution by its name, where no norm is folded
    into a kernel.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(variables, image):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return apply(variables, image, rngs={"dropout": jax.random.key(0)})

    def products(jaxpr, times):
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name in ("conv_general_dilated", "dot_general"):
                kernel = equation.invars[1].aval.shape
                size = math.prod(equation.outvars[0].aval.shape)
                yield kernel, times * size * math.prod(kernel[:-1])
                continue
            inner_times = times * equation.params.get("length", 1)  # of a scan
            for inner in jaxprs_in_params(equation.params):
                yield from products(inner, inner_times)

    variables = abstract_variables(model, image_shape[2])
    with ops.lowering("xla"):
        return list(products(jax.make_jaxpr(forward)(variables, image).jaxpr, 1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_layers_state_is_what_the_program_does(name):
    entry = PUBLISHED[name]
    model = create_model(**entry.model_arguments)
    shape = dataset_info(entry.dataset).image_shape
    stated = [(layer.kernel, layer.macs) for layer in list_layers(model, shape)]
    assert stated == traced_costs(model, shape)


@pytest.mark.parametrize("name", ["cifar10-lru14", "cifar10-shufflenet-05x"])
def test_costs_are_the_same_in_every_lowering(name):
    model, shape = create_model(**PUBLISHED[name].model_arguments), (32, 32, 3)
    for lowering in ops.LOWERINGS:
        with ops.lowering(lowering):
            costs = summarise(model, shape)
        found = costs["params"], costs["conv_params"], costs["macs"]
        assert found == COSTS[name], lowering


def test_a_model_s_arguments_and_layers_on_the_command_line():
    result = command("summary", "shufflenet", "--groups=8", "--layers", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["layers"]) == 50
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert found["conv_params"] == sum(layer["params"] for layer in found["layers"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("shufflenet", "--groups=8", "--width_mult=0.5"),
            "model.width_mult is 0.5; it must be such that 8 groups divide all "
            "channels; they do not divide 12",
        ),
        (
            ("mobilenet", "--image_size=0"),
            "image_size is 0; it must be from 1 to 10000",
        ),
    ],
)
def test_a_mistake_gets_one_line(arguments, message):
    result = command("summary", *arguments)
    assert result.returncode == 2
    assert result.stderr == f"error: {message}\n"
