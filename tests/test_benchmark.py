"""The benchmark's figures, and its limits on compile time and memory."""

import json

import pytest
from conftest import command


@pytest.mark.slow
def test_it_prints_the_figures():
    flags = ("--model=lrunet", "--layer_reuse=1", "--width_mult=0.25")
    result = command("benchmark", *flags, "--batch_size=16", "--rounds=1", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["model"] == "lrunet"
    assert figures["batch_size"] == 16
    for name in ("step_seconds", "inference_seconds", "compile_seconds", "temp_bytes"):
        assert figures[name] > 0


@pytest.mark.slow
def test_lrunet_8_fits_in_its_memory():
    result = command("benchmark", "--layer_reuse=8", "--rounds=1", "--json")
    assert json.loads(result.stdout)["temp_bytes"] <= 0.6e9


def test_a_mistake_gets_one_line():
    result = command("benchmark", "--layer_reuse=0")
    assert result.returncode == 2
    assert result.stderr == "error: model.layer_reuse is 0; it must be at least 1\n"
