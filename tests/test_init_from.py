"""Weights to begin with: those of other images, and of images normalised or not."""

import jax
import numpy as np
import pytest
from weights import random_variables

from lrunet_jax import create_model, list_models
from lrunet_jax.errors import InputError
from lrunet_jax.models import stem
from lrunet_jax.weights.loading import save_model, weights_for
from lrunet_jax.weights.stored_model import StoredModel

GREY = np.random.default_rng(0).uniform(size=(2, 32, 32, 1)).astype(np.float32)


def arguments_of(name):
    fields = {"width_mult": 0.125, "layer_reuse": 2} if name == "lrunet" else {}
    return {"name": name, "num_classes": 5, "width_mult": 0.25} | fields


def fresh(name, channels, key=0):
    """A network's weights for so many channels, with statistics that pass signals."""
    model = create_model(**arguments_of(name))
    variables = random_variables(model, channels, seed=key)
    statistics = jax.tree.map(lambda leaf: leaf / 10, variables["batch_stats"])
    return model, variables | {"batch_stats": statistics}


def stored(path, name, channels, **more):
    _, variables = fresh(name, channels)
    arguments = arguments_of(name)
    network = StoredModel(
        arguments, channels, variables | more, 0, "tiny", "", None, None
    )
    save_model(network, str(path))
    return variables


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", list_models())
@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_a_grey_image_has_the_same_logits_in_grey_and_in_colour(
    name, before, after, tmp_path, capsys
):
    source = stored(tmp_path / "net", name, before)
    model, variables = fresh(name, after, key=1)
    found = weights_for(model, variables, str(tmp_path / "net"), normalise=False)
    how = {3: "of 3 channels, and summed to 1", 1: "of 1 channel, and spread over 3"}
    said = f"init_from: the first convolution is {how[before]}\n"
    assert capsys.readouterr().out == said
    apply = jax.jit(model.apply)
    expected = apply(source, np.repeat(GREY, before, axis=3))
    scale = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 1e-2 * scale  # images make a difference
    logits = apply(found, np.repeat(GREY, after, axis=3))
    # Sums of three products in another order, within a few layers of float32.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * scale)


def test_channels_are_summed_and_a_third_goes_to_each(tmp_path):
    for before, after in ((3, 1), (1, 3)):
        path = tmp_path / str(before)
        kernel = stored(path, "lrunet", before)["params"]["features_0"]["kernel"]
        found = weights_for(*fresh("lrunet", after, key=1), str(path), normalise=False)
        new = found["params"]["features_0"]["kernel"]
        assert new.dtype == np.float32
        assert new.shape == (3, 3, after, 64)
        for channel in range(after):
            # float32's own rounding.
            expected = kernel.sum(2, dtype=np.float64) / after
            np.testing.assert_allclose(new[:, :, channel], expected, atol=1e-7)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", list_models())
def test_the_first_convolution_is_found_by_its_shape(name):
    model, variables = fresh(name, 3)
    (first, kernel), axis = stem(model, 3)
    assert (first, kernel) in {("features_0", "kernel"), ("features_0_0", "kernel")} | {
        ("conv1", "kernel")
    }
    assert (variables["params"][first][kernel].shape[axis], axis) == (3, 2)


def test_other_numbers_of_channels_are_another_network(tmp_path):
    stored(tmp_path / "net", "lrunet", 4)
    with pytest.raises(InputError, match=r"another network: .*features_0/kernel is"):
        weights_for(*fresh("lrunet", 3), str(tmp_path / "net"), normalise=False)


def test_it_is_said_where_only_one_of_the_two_normalises(tmp_path, capsys):
    one = np.float32([0.5])
    statistics = {"input_stats": {"mean": one, "std": one}}
    stored(tmp_path / "plain", "lrunet", 1)
    stored(tmp_path / "normal", "lrunet", 1, **statistics)
    own, others = "trained on normalised images, and this run's are", "init_from: "
    for name, normalise, said in (
        ("plain", False, ""),
        ("plain", True, f"{others}{tmp_path}/plain was not {own}\n"),
        ("normal", False, f"{others}{tmp_path}/normal was {own} not\n"),
        ("normal", True, ""),
    ):
        path = str(tmp_path / name)
        weights_for(*fresh("lrunet", 1), path, normalise=normalise)
        assert capsys.readouterr().out == said
