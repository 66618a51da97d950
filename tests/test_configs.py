"""The configs."""

import importlib

import pytest

from configs import digits
from lrunet_jax import create_model, list_models
from lrunet_jax.runs.config import flatten
from lrunet_jax.train.validate import validate
from lrunet_jax.weights.published import PUBLISHED

DATASETS = ("cifar10", "cifar100", "fashion_mnist")


def get_config(model, argument):
    return importlib.import_module(f"configs.{model}").get_config(argument)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("model", list_models())
def test_the_paper_s_recipe_of_every_model_on_every_data_set(model, dataset):
    config = get_config(model, dataset)
    validate(config, num_devices=8)
    create_model(**config.model)
    assert (config.model.name, config.dataset) == (model, dataset)
    # The width of the published checkpoints, and the groups.
    published = [
        entry.arguments
        for entry in PUBLISHED.values()
        if (entry.model, entry.dataset) == (model, dataset)
    ]
    assert published
    for arguments in published:
        for name, value in arguments.items():
            if name != "layer_reuse":
                assert config.model[name] == value
    drops = {"lrunet": 0.5, "mobilenet": 0.2, "mobilenet_v2": 0.2}
    assert config.model.get("drop") == drops.get(model)
    assert (config.batch_size, config.epochs, config.learning_rate) == (256, 300, 0.1)
    assert (config.decay_epochs, config.decay_factor) == ((200, 250), 0.1)
    assert (config.momentum, config.weight_decay) == (0.9, 5e-4)
    assert config.schedule == "piecewise"
    assert (config.decay_of, config.dtype) == ("all", "float32")
    assert config.matmul_precision == "highest"
    for off in ("nesterov", "normalise", "label_smoothing", "mixup", "ema_decay"):
        assert not config[off]


@pytest.mark.parametrize("model", list_models())
def test_the_modern_recipe_is_valid_and_changes_no_field_s_type(model):
    modern = get_config(model, "fashion_mnist,modern")
    validate(modern, num_devices=8)
    paper = get_config(model, "fashion_mnist,paper")
    assert modern.model == paper.model
    types = lambda config: {name: type(value) for name, value in flatten(config)}
    assert types(modern) == types(paper)
    assert modern != paper


@pytest.mark.parametrize("model", ["digits", *list_models()])
def test_an_unknown_argument_is_refused(model):
    for argument in ("mnist", "cifar10,ancient"):
        with pytest.raises(ValueError, match="config argument is "):
            get_config(model, argument)


def test_digits_is_valid():
    validate(digits.get_config(), num_devices=1)
