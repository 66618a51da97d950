"""A sixth network is one model file, one registry row and one config."""

import json
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import pytest
from etils import epath

import lrunet_jax
from configs import digits
from lrunet_jax import ops
from lrunet_jax.models import list_layers, registry, summarise
from lrunet_jax.models.layers import BatchNorm, Conv, Linear, channels_first
from lrunet_jax.runs.curves import plot_groups
from lrunet_jax.runs.groups import read_groups
from lrunet_jax.weights.loading import open_model, save_model


class TinyNet(nn.Module):
    """A convolution and a classifier."""

    num_classes: int = 10
    width: int = 4

    @nn.compact
    def __call__(self, images, *, train=False):
        x = Conv(self.width, stride=2, name="conv")(channels_first(self, images))
        x = ops.relu(BatchNorm(self.width, name="bn")(x, train=train))
        return Linear(self.num_classes, name="linear")(jnp.mean(x, axis=(1, 2)))


@pytest.fixture
def sixth(monkeypatch):
    monkeypatch.setitem(registry._MODELS, "tinynet", TinyNet)


def small_config():
    config = digits.get_config()
    with config.unlocked():
        config.model = {"name": "tinynet", "width": 3}
    config.update(epochs=1, warmup_epochs=0.0, batch_size=479)
    return config


@pytest.mark.usefixtures("sixth")
def test_its_costs_are_those_that_its_layers_state():
    model = lrunet_jax.create_model("tinynet", num_classes=5)
    names = [layer.name for layer in list_layers(model, (8, 8, 1))]
    assert names == ["conv", "linear"]
    costs = summarise(model, (8, 8, 1))
    assert costs["macs"] == 4 * 4 * 4 * 9 + 4 * 5
    assert costs["params"] == 9 * 4 + 2 * 4 + 4 * 5 + 5


def test_a_kernel_whose_costs_nobody_states_is_named(monkeypatch):
    class Silent(nn.Module):
        num_classes: int = 10

        @nn.compact
        def __call__(self, images, *, train=False):
            x = Conv(4, name="conv")(channels_first(self, images))
            x = BatchNorm(4, name="bn")(x, train=train)
            return nn.Dense(self.num_classes, name="dense")(x.mean((1, 2)).T)

    monkeypatch.setitem(registry._MODELS, "silent", Silent)
    with pytest.raises(TypeError, match=r"nobody states: {'dense'}"):
        list_layers(lrunet_jax.create_model("silent"), (8, 8, 1))


@pytest.mark.usefixtures("sixth")
def test_it_is_trained_opened_converted_and_drawn(tmp_path):
    assert "tinynet" in lrunet_jax.list_models()
    workdir = str(tmp_path / "run")
    lrunet_jax.train_and_evaluate(small_config(), workdir)
    state = lrunet_jax.train_and_evaluate(small_config(), workdir)  # it goes on
    assert int(state.epoch) == 1
    model, variables = lrunet_jax.load(workdir)
    assert model == TinyNet(num_classes=10, width=3)
    assert model.apply(variables, jnp.zeros((2, 32, 32, 1))).shape == (2, 10)
    save_model(open_model(workdir), str(tmp_path / "converted"))
    assert open_model(tmp_path / "converted").create_model() == model
    picture = epath.Path(tmp_path) / "runs.svg"
    plot_groups(read_groups([workdir]), picture)
    assert "<!-- tinynet -->" in picture.read_text()


def test_any_number_of_models_is_drawn(monkeypatch, make_run, tmp_path):
    for number in range(20):
        monkeypatch.setitem(registry._MODELS, f"net{number}", TinyNet)
    config = make_run("a", [0.5], **{"model.name": "lrunet"}) + "/config.json"
    text = pathlib.Path(config).read_text()
    fields = json.loads(text) | {"model": {"name": "net9"}}
    pathlib.Path(config).write_text(json.dumps(fields))
    picture = epath.Path(tmp_path) / "runs.svg"
    plot_groups(read_groups([str(tmp_path / "a")]), picture)
    assert "<!-- net9 -->" in picture.read_text()
