"""The configs."""

import pytest

from configs import digits, lrunet
from lrunet_jax import create_model
from lrunet_jax.config import validate


@pytest.mark.parametrize(
    ("dataset", "width"), [("cifar10", 1.0), ("cifar100", 2.0), ("fashion_mnist", 1.0)]
)
def test_the_paper_s_recipe(dataset, width):
    config = lrunet.get_config(dataset)
    validate(config, num_devices=8)
    create_model(**config.model)
    assert config.dataset == dataset
    assert config.model.width_mult == width
    assert (config.batch_size, config.epochs, config.learning_rate) == (256, 300, 0.1)
    assert (config.decay_epochs, config.decay_factor) == ((200, 250), 0.1)
    assert (config.momentum, config.weight_decay) == (0.9, 5e-4)
    assert config.matmul_precision == "highest"


@pytest.mark.parametrize("get_config", [digits.get_config, lrunet.get_config])
def test_an_unknown_argument_is_refused(get_config):
    with pytest.raises(ValueError, match="config argument is 'mnist'"):
        get_config("mnist")
