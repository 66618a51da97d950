"""The benchmark's figures, and its limits on compile time and memory."""

import json
import re
import sys

import jax
import pytest
from conftest import command

from lrunet_jax import benchmark, ops
from lrunet_jax.weights.published import PUBLISHED


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


@pytest.mark.slow
def test_pytorch_takes_turns():
    flags = ("--layer_reuse=1", "--width_mult=0.25", "--batch_size=4", "--rounds=1")
    result = command("benchmark", *flags, "--torch", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    for name in ("step", "inference", "single"):
        seconds, theirs = figures[f"{name}_seconds"], figures[f"torch_{name}_seconds"]
        assert figures[f"{name}_ratio"] == pytest.approx(theirs / seconds)
        low, high = figures[f"{name}_ratio_quartiles"]
        assert low <= high
    assert command("benchmark", *flags, "--torch").stdout.count("PyTorch / here") == 3


def test_all_are_the_published_networks(monkeypatch, capsys):
    timed = []

    def instead(model, image_shape, **options):
        timed.append((model, image_shape, options | {"lowering": ops.resolve()}))
        return {
            **dict.fromkeys(("step_seconds", "inference_seconds"), 0.5),
            **{"single_seconds": 0.001, "compile_seconds": 1.0, "temp_bytes": 2e6},
        }

    monkeypatch.setattr(benchmark, "benchmark", instead)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--all", "--lowering=xla"])
    # Others in this process go on with what is compiled.
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    benchmark.main()
    assert len(timed) == len(PUBLISHED)
    model, image_shape, options = timed[-1]  # fmnist-shufflenetv2-025x
    assert (model.width_mult, model.num_classes) == (0.25, 10)
    assert options["lowering"] == "xla"
    assert image_shape == (28, 28, 1)
    assert options["batch_size"] == 256
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "18/18 fmnist-shufflenetv2-025x"
    table = printed.out.splitlines()
    assert len(table) == 2 + len(PUBLISHED)
    assert re.match(r"\| fmnist-shufflenetv2-025x +\| +500.0 \| +500.0 ", table[-1])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layer_reuse=0",), "model.layer_reuse is 0; it must be at least 1"),
        (("--all", "--model=mobilenet"), "model is 'mobilenet'; it must be left out"),
        (("--all", "--layer_reuse=3"), "layer_reuse is 3; it must be left out with"),
        (("--lowering=mapped",), "lowering is 'mapped'; known are auto, cpu, tpu, xla"),
        (("--rounds=0",), "rounds is 0; it must be at least 1"),
        (("--torch", "--dtype=bfloat16"), "dtype is 'bfloat16'; it must be float32"),
    ],
)
def test_a_mistake_gets_one_line(flags, message):
    result = command("benchmark", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
