"""Names and shapes across: PyTorch's state_dict and Flax's variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import create_torch_model, needs_torch, torch

from lrunet_jax import create_model
from lrunet_jax.errors import InputError
from lrunet_jax.weights import torch_format
from lrunet_jax.weights.state_dict import (
    from_state_dict,
    identify,
    name_map,
    to_state_dict,
)

NETWORKS = [
    ("lrunet", {"width_mult": 0.125, "layer_reuse": 1}),
    ("lrunet", {"width_mult": 1.0, "layer_reuse": 12}),
    ("lrunet", {"width_mult": 1.5, "layer_reuse": 2}),
    ("mobilenet", {"width_mult": 0.1}),
    ("mobilenet", {"width_mult": 0.4}),
    ("mobilenet", {"width_mult": 1.25}),
    ("mobilenet_v2", {"width_mult": 0.1}),
    ("mobilenet_v2", {"width_mult": 0.35}),
    ("mobilenet_v2", {"width_mult": 1.4}),
    ("shufflenet", {"width_mult": 0.25, "groups": 3}),
    ("shufflenet", {"width_mult": 0.75, "groups": 1}),
    ("shufflenet", {"width_mult": 1.5, "groups": 2}),
    ("shufflenet", {"width_mult": 0.5, "groups": 4}),
    ("shufflenet", {"width_mult": 1.0, "groups": 8}),
    *(("shufflenet_v2", {"width_mult": w}) for w in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
]


def abstract(name, channels=3, **arguments):
    images = jnp.zeros((1, 32, 32, channels))
    init = create_model(name, **arguments).init
    return jax.eval_shape(init, jax.random.key(0), images)


def fresh(name, channels=3, classes=10, **arguments):
    """The tensors of a PyTorch network that has seen one batch."""
    torch.manual_seed(0)
    model = create_torch_model(name, channels, classes, **arguments)
    model.train()(torch.rand(2, channels, 32, 32))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@needs_torch
@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
def test_a_fresh_network_goes_there_and_back_with_its_bits(name, arguments):
    tensors = fresh(name, channels=1, classes=23, **arguments)
    found, channels = identify(tensors)
    assert found == {"name": name, "num_classes": 23, **arguments}
    assert channels == 1
    expected = abstract(name, channels, num_classes=23, **arguments)
    variables, counters = from_state_dict(tensors, expected)
    assert set(counters.values()) == {1}
    again = to_state_dict(variables, counters)
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert again[key].tobytes() == tensor.tobytes(), key
        assert again[key].dtype == tensor.dtype
        assert again[key].shape == tensor.shape


@pytest.mark.slow
def test_the_published_go_there_and_back_with_their_bits(shared):
    paths = sorted(shared.glob("checkpoints/*.t7"))
    assert len(paths) == 18
    for path in paths:
        stored = torch_format.read(path)["net"]
        tensors = {key.removeprefix("module."): stored[key] for key in stored}
        arguments, channels = identify(tensors)
        variables, counters = from_state_dict(
            tensors, abstract(**arguments, channels=channels)
        )
        assert counters == {}
        again = to_state_dict(variables, counters)
        for key, tensor in tensors.items():
            found = again.pop(key)
            assert found.tobytes() == tensor.tobytes(), key
            assert found.shape == tensor.shape
        assert all(key.endswith("num_batches_tracked") for key in again)
        assert set(map(int, again.values())) == {0}


def test_the_map_can_be_read_aloud():
    names = name_map(abstract("lrunet", layer_reuse=11))
    kernel = ("params", "stage1", "dw", "kernel")
    assert names["stage1.dw.weight"] == (kernel, -1)
    mean = ("batch_stats", "stage2", "iterations", "pw_bn_list", "mean")
    assert names["stage2.pw_bn_list.10.running_mean"] == (mean, 10)
    names = name_map(abstract("mobilenet_v2"))
    scale = ("params", "features_18_1", "scale")
    assert names["features.18.1.weight"] == (scale, -1)
    kernel = ("params", "features_2", "conv_3", "kernel")
    assert names["features.2.conv.3.weight"] == (kernel, -1)


@needs_torch
def test_a_kernel_s_axes_are_those_of_pytorch():
    tensors = fresh("shufflenet", width_mult=0.5, groups=2)
    variables, _ = from_state_dict(
        tensors, abstract("shufflenet", width_mult=0.5, groups=2)
    )
    params = variables["params"]
    weight = tensors["layer1.1.conv1.weight"]  # (out, in, 1, 1)
    assert params["layer1_1"]["conv1"]["kernel"][0, 0, 3, 5] == weight[5, 3, 0, 0]
    assert params["conv1"]["kernel"][2, 0, 1, 4] == tensors["conv1.weight"][4, 1, 2, 0]
    assert params["linear"]["kernel"][7, 2] == tensors["linear.weight"][2, 7]


@needs_torch
def test_every_tensor_has_a_place_and_every_place_a_tensor():
    expected = abstract("lrunet", layer_reuse=2)
    tensors = fresh("lrunet", width_mult=1.0, layer_reuse=2)

    def message(change):
        with pytest.raises(InputError) as error:
            from_state_dict({**tensors, **change}, expected)
        return str(error.value)

    assert message({"extra.weight": np.zeros(3, np.float32)}) == (
        "the model has no place for 'extra.weight'"
    )
    assert message({"features.0.weight": np.zeros(3, np.float32)}) == (
        "of another shape or type 'features.0.weight (float32[3], expected "
        "float32[64, 3, 3, 3])'"
    )
    assert "(int64[64], expected float32[64])" in message(
        {"features.1.bias": np.zeros(64, np.int64)}
    )
    assert "no place for 'stage1.dw.num_batches_tracked'" in message(
        {"stage1.dw.num_batches_tracked": np.array(1)}
    )
    missing = {k: v for k, v in tensors.items() if ".dw_bn_list.1." not in k}
    with pytest.raises(InputError, match=r"the file lacks .* and 13 more; .* 'extra'"):
        from_state_dict({**missing, "extra": np.zeros(3)}, expected)


@needs_torch
def test_an_unknown_network_is_named_by_its_tensors():
    with pytest.raises(InputError, match=r"one of the five networks: 'a', 'b'"):
        identify({"a": np.zeros(3), "b": np.zeros(3)})
    with pytest.raises(InputError, match=r"none of .* five|no tensor"):
        identify({})
    tensors = fresh("mobilenet", width_mult=0.5)
    tensors["features.1.conv2.weight"] = np.zeros((33, 16, 1, 1), np.float32)
    with pytest.raises(InputError, match=r"of a mobilenet.*no width makes"):
        identify(tensors)
    del tensors["features.12.conv2.weight"]
    with pytest.raises(InputError, match=r"of a mobilenet.*features\.12\.conv2"):
        identify(tensors)
