"""The five networks against PyTorch, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import create_torch_model, needs_torch, torch
from weights import random_variables

from lrunet_jax import create_model, list_models
from lrunet_jax.errors import InputError
from lrunet_jax.models import model_fields
from lrunet_jax.weights.state_dict import from_state_dict, name_map, to_state_dict

# Sums of up to 1e4 float64 products, 2e-16 each, through up to 60 layers.
TOLERANCE = 1e-10

ONE_OF_EACH = [
    ("lrunet", {"width_mult": 0.375, "layer_reuse": 2}),
    ("mobilenet", {"width_mult": 0.25}),
    ("mobilenet_v2", {"width_mult": 0.25}),
    ("shufflenet", {"width_mult": 0.5, "groups": 3}),
    ("shufflenet_v2", {"width_mult": 0.25}),
]
OTHERS = [
    ("lrunet", {"width_mult": 1.0, "layer_reuse": 3}),
    ("lrunet", {"width_mult": 2.0, "layer_reuse": 1}),
    ("mobilenet", {"width_mult": 0.4}),
    ("mobilenet_v2", {"width_mult": 1.1}),
    ("shufflenet", {"width_mult": 0.5, "groups": 1}),
    ("shufflenet", {"width_mult": 0.5, "groups": 2}),
    ("shufflenet", {"width_mult": 0.5, "groups": 4}),
    ("shufflenet", {"width_mult": 1.0, "groups": 8}),
    ("shufflenet_v2", {"width_mult": 1.5}),
]
NETWORKS = ONE_OF_EACH + [
    pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS
]


def torch_model(name, seed=0, channels=3, classes=10, **arguments):
    """In float64, with norms and statistics as after some training."""
    torch.manual_seed(seed)
    model = create_torch_model(name, channels, classes, **arguments).double()
    rng = np.random.default_rng(seed)
    for key, tensor in model.state_dict().items():
        if tensor.ndim == 1 and "num_batches" not in key:
            tensor.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, tensor.shape)))
    return model


def variables_of(model, torch_model, images):
    """The same numbers in float64; the map itself deals in the files' float32."""
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    tensors = {k: t.numpy() for k, t in torch_model.state_dict().items()}
    single = {
        k: t.astype(np.float32) if t.dtype == np.float64 else t
        for k, t in tensors.items()
    }
    variables, _ = from_state_dict(single, expected)
    variables = jax.tree.map(lambda a: a.astype(np.float64), variables)
    names = name_map(variables)
    for name, place in names.items():
        target = functools.reduce(lambda tree, key: tree[key], place.path, variables)
        target = target if place.iteration < 0 else target[place.iteration]
        axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[target.ndim]
        target[...] = tensors[name].transpose(axes)
    return variables


def assert_close(found, expected, name=""):
    scale = max(np.abs(expected).max(), 1e-3)
    assert np.abs(found - expected).max() <= TOLERANCE * scale, name


@needs_torch
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "arguments"), NETWORKS)
def test_every_layer_puts_out_what_pytorch_s_does(name, arguments):
    model = create_model(name, num_classes=7, **arguments)
    oracle = torch_model(name, classes=7, channels=1, **arguments).eval()
    images = np.random.default_rng(1).uniform(size=(3, 28, 28, 1))
    variables = variables_of(model, oracle, images)

    outputs = {}
    for module_name, module in oracle.named_modules():
        module.register_forward_hook(
            lambda _, __, out, key=module_name: outputs.update({key: out})
        )
    with torch.no_grad():
        expected = oracle(torch.from_numpy(images).movedim(3, 1))

    capture = functools.partial(
        model.apply, capture_intermediates=True, mutable=["intermediates"]
    )
    logits, state = jax.jit(capture)(variables, images)
    assert_close(logits, expected.numpy())
    compared = set()
    for path, found in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        modules = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        torch_name = ".".join(modules[:-1]).replace("_", ".")
        if torch_name in outputs and found.shape[3:] == (len(images),):
            wanted = outputs[torch_name].movedim(0, 3)
            assert_close(found, wanted.numpy(), torch_name)
            compared.add(torch_name.split(".")[0])
    stages = {
        "lrunet": {"features", "stage1", "stage2", "stage3", "stage4", "classifier"},
        "mobilenet": {"features"},
        "mobilenet_v2": {"features"},
        "shufflenet": {"conv1", "bn1", "layer1", "layer2", "layer3"},
        "shufflenet_v2": {"conv1", "layer1", "layer2", "layer3", "conv2", "bn2"},
    }
    assert stages[name] <= compared


@needs_torch
@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lrunet", {"width_mult": 0.5, "layer_reuse": 2, "drop": 0.0}),
        ("mobilenet", {"width_mult": 0.0625, "drop": 0.0}),
        ("mobilenet_v2", {"width_mult": 0.0625, "drop": 0.0}),
        ("shufflenet", {"width_mult": 0.25, "groups": 3}),
        ("shufflenet_v2", {"width_mult": 0.25}),
    ],
)
def test_a_training_step_s_gradients_and_statistics_are_pytorch_s(name, arguments):
    model = create_model(name, **arguments)
    oracle = torch_model(name, **arguments).train()
    rng = np.random.default_rng(1)
    images, weights = rng.uniform(size=(4, 16, 16, 3)), rng.normal(size=(4, 10))
    variables = variables_of(model, oracle, images)

    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits * weights), updates["batch_stats"]

    gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    logits = oracle(torch.from_numpy(images).movedim(3, 1))
    (logits * torch.from_numpy(weights)).sum().backward()

    expected = {k: t for k, t in oracle.named_buffers() if "num_batches" not in k}
    expected |= {k: parameter.grad for k, parameter in oracle.named_parameters()}
    found = to_state_dict({"params": gradients, "batch_stats": stats}, 0)
    largest = max(np.abs(tensor.numpy()).max() for tensor in expected.values())
    for key, tensor in expected.items():
        # A norm right before another's convolution has a bias gradient of zero, of
        # which either side has rounding; the second step of its conditioning is in
        # all gradients, which pass the norms of a few values each.
        scale = max(np.abs(tensor.numpy()).max(), 1e-6 * largest)
        assert np.abs(found[key] - tensor.numpy()).max() <= 1e-8 * scale, key


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lrunet", {"width_mult": 1.0, "layer_reuse": 2}),
        ("mobilenet", {"width_mult": 0.5}),
        ("mobilenet_v2", {"width_mult": 0.5}),
        ("shufflenet", {"width_mult": 1.0, "groups": 3}),
        ("shufflenet_v2", {"width_mult": 0.5}),
    ],
)
def test_weights_begin_distributed_as_the_original_s(name, arguments):
    images = jnp.zeros((1, 32, 32, 3))
    model = create_model(name, **arguments)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    torch.manual_seed(0)
    oracle = create_torch_model(name, 3, 10, **arguments).state_dict()
    for key, found in to_state_dict(variables, 0).items():
        wanted = oracle[key].numpy()
        assert found.shape == wanted.shape, key
        assert found.dtype == wanted.dtype, key
        if wanted.std() == 0:  # norms, statistics, zero biases
            np.testing.assert_array_equal(found, wanted, key)
            continue
        # Standard errors of a mean and of a standard deviation, of each side; the
        # uniform's deviation varies less than the normal's.
        error = wanted.std() / wanted.size**0.5
        assert abs(found.mean() - wanted.mean()) < 5 * 2**0.5 * error, key
        assert abs(found.std() - wanted.std()) < 5 * error, key
        if wanted.size > 200:
            ratio = np.abs(found).max() / np.abs(wanted).max()
            assert 0.6 < ratio < 1.7, key  # the range: uniform, or untruncated normal


def test_dropout_is_a_field_where_the_original_has_it():
    drops = {name: model_fields(name).get("drop") for name in list_models()}
    assert drops == {
        "lrunet": 0.5,
        "mobilenet": 0.2,
        "mobilenet_v2": 0.2,
        "shufflenet": None,
        "shufflenet_v2": None,
    }


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2"])
def test_dropout_drops_in_training_alone(name):
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    model = create_model(name, width_mult=0.0625, drop=0.9)
    variables = random_variables(model, 1)

    @functools.partial(jax.jit, static_argnames="train")
    def logits(seed, train):
        out, _ = model.apply(
            variables,
            images,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(seed)},
        )
        return out

    assert (logits(0, train=False) == logits(1, train=False)).all()
    assert (logits(0, train=True) != logits(1, train=True)).any()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mobilenet", {"width_mult": 0.03}, "width_mult is 0.03; it must be at least"),
        (
            "mobilenet",
            {"width_mult": -1.0},
            r"width_mult is -1.0; it must be in \(0, 100\]",
        ),
        ("mobilenet", {"width_mult": float("inf")}, "width_mult is inf"),
        ("mobilenet", {"width_mult": float("nan")}, "width_mult is nan"),
        ("mobilenet", {"drop": 1.0}, r"drop is 1.0; it must be in \[0, 1\)"),
        ("mobilenet_v2", {"width_mult": 0.06}, "at least 0.0625"),
        (
            "mobilenet_v2",
            {"num_classes": 0},
            r"num_classes is 0; it must be in \[1, ",
        ),
        ("shufflenet", {"groups": 5}, "groups is 5; it must be one of 1, 2, 3, 4, 8"),
        (
            "shufflenet",
            {"width_mult": 0.5, "groups": 8},
            "width_mult is 0.5; .* 8 groups divide all channels; .* not divide 12",
        ),
        ("shufflenet", {"width_mult": 0.01, "groups": 1}, "stem has one channel"),
        ("shufflenet_v2", {"width_mult": 0.3}, "one of 0.25, 0.5, 0.75, 1.0, 1.5, 2.0"),
        ("shufflenet_v2", {"groups": 2}, "'groups'"),
    ],
)
def test_what_cannot_work_is_refused_with_what_can(name, arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(name, **arguments)


@pytest.mark.parametrize("name", list_models())
def test_integers_are_no_images(name):
    model = create_model(name, **({"layer_reuse": 1} if name == "lrunet" else {}))
    with pytest.raises(InputError, match=r"images are uint8; .* floats in \[0, 1\]"):
        model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))


def test_all_five_are_there():
    assert list_models() == [
        "lrunet",
        "mobilenet",
        "mobilenet_v2",
        "shufflenet",
        "shufflenet_v2",
    ]
