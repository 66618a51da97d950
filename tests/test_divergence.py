"""A run that diverges says what went first, and at which step."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from test_workdir import quick_config

from lrunet_jax.errors import DivergedError
from lrunet_jax.models import create_model, leaf_names
from lrunet_jax.train import loop
from lrunet_jax.train.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("shallow")


def test_names_are_in_the_order_in_which_a_network_comes_to_them():
    names = leaf_names(create_model("lrunet", width_mult=0.125), 3)
    modules = list(dict.fromkeys(name.split("/")[0] for name in names))
    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    classifier = ["classifier_0", "classifier_1", "classifier_4"]
    assert modules == ["features_0", "features_1", *stages, *classifier]


def poisoned(monkeypatch, module, leaf, value):
    """Lets runs begin with one value of a weight."""
    fresh = loop.fresh_state

    def fresh_state(*args):
        state = fresh(*args)
        params = {name: dict(leaves) for name, leaves in state.params.items()}
        array = params[module][leaf]
        params[module][leaf] = array.at[(0,) * array.ndim].set(value)
        return state.replace(params=params)

    monkeypatch.setattr(loop, "fresh_state", fresh_state)


@pytest.mark.parametrize(
    ("module", "leaf", "value", "first"),
    [
        ("features_0", "kernel", np.inf, "the statistic features_1/(mean|var)"),
        ("features_1", "bias", np.nan, "the statistic stage1/iterations/dw_bn_list/"),
        ("classifier_4", "bias", np.nan, "the loss"),
    ],
)
def test_weights_that_are_not_finite_at_first_are_to_blame(
    module, leaf, value, first, tmp_path, monkeypatch
):
    poisoned(monkeypatch, module, leaf, value)
    config = quick_config()
    config.model = {"name": "lrunet", "layer_reuse": 1, "width_mult": 0.125}
    with pytest.raises(DivergedError) as error:
        train_and_evaluate(config, str(tmp_path))
    message = str(error.value)
    assert re.match(f"{first}.* is not finite any more at step 1$", message), message


@pytest.mark.slow
def test_an_update_that_is_too_large_is_named_with_the_learning_rate(tmp_path):
    train_and_evaluate(quick_config(), str(tmp_path))
    config = quick_config(learning_rate=3e38, schedule="piecewise", momentum=0.99)
    config.weight_decay = 3e38
    config.epochs = 3
    with pytest.raises(DivergedError) as error:
        train_and_evaluate(config, str(tmp_path))
    message = str(error.value)
    first = "the weight features_0_0/kernel is .* at step 7; "
    assert re.match(first, message), message
    assert "the last good checkpoint is " in message
    assert message.endswith("/checkpoints/6; a lower learning_rate may help")


@pytest.mark.slow
def test_the_step_is_found_within_a_call(tmp_path, monkeypatch):
    """The call that diverges has many steps: they are taken once more, one by one."""
    config = quick_config()
    config.update(epochs=1, batch_size=64)
    step, seen = loop.EpochLoop.run, []

    def run(self, state, train_set, at_a_time=0):
        self._steps = 20
        for after in step(self, state, train_set, at_a_time):
            seen.append((at_a_time, int(after.step)))
            if int(after.step) >= 7:
                nan = jnp.full_like(after.metrics.loss, jnp.nan)
                after = after.replace(metrics=after.metrics.replace(loss=nan))
            yield after

    monkeypatch.setattr(loop.EpochLoop, "run", run)
    with pytest.raises(DivergedError, match=r"the loss is not .* at step 7;"):
        train_and_evaluate(config, str(tmp_path))
    assert seen == [(0, 20), *((1, step) for step in range(1, 8))]
