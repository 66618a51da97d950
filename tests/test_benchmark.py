"""The benchmark's figures, and its limits on compile time and memory."""

import itertools
import json
import re
import sys
import types

import jax
import pytest
from conftest import command
from oracle import needs_torch

from lrunet_jax import benchmark, create_model, ops
from lrunet_jax.weights.published import PUBLISHED
from lrunet_jax.workload import Workload, our_workload, random_split

TINY = ("--model=lrunet", "--layer_reuse=1", "--width_mult=0.125")


@pytest.fixture
def short_turns(monkeypatch):
    monkeypatch.setattr(
        benchmark, "TURN_SECONDS", dict.fromkeys(benchmark.TURN_SECONDS, 0.01)
    )


def test_figures_are_medians_of_the_rounds(monkeypatch):
    clock = itertools.count()  # in which every look takes a second
    seconds = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(benchmark, "time", seconds)
    monkeypatch.setattr(benchmark, "TURN_SECONDS", dict.fromkeys(Workload._fields, 1))
    calls = {"here": [], "there": []}

    def workload(who, factor, modulus):
        """Whose turns take different times, which follow from their number."""

        def work(count):
            calls[who].append(count)
            for _ in range(factor * len(calls[who]) % modulus):
                next(clock)

        return Workload(work, work, work)

    monkeypatch.setattr(
        benchmark,
        "our_workload",
        lambda *_: (
            workload("here", 1, 5),
            {},
            {"compile_seconds": 3, "temp_bytes": 5},
        ),
    )
    monkeypatch.setattr(benchmark, "torch_workload", lambda *_: workload("there", 3, 7))
    model = create_model("lrunet")
    figures = benchmark.benchmark(model, (8, 8, 3), rounds=5, torch_arguments={})
    # Turns 4 to 8 here, modulo 5, turns 2 to 6 there times 3, modulo 7; and a second
    # for the look itself.
    here, there = [5, 1, 2, 3, 4], [7, 3, 6, 2, 5]
    ratios = [b / a for a, b in zip(here, there, strict=True)]
    assert figures["step_seconds"] == 3
    assert figures["step_quartiles"] == [2, 4]
    assert figures["torch_step_seconds"] == 5
    assert figures["step_ratio"] == sorted(ratios)[2] == 1.4  # of the medians: 5 / 3
    low, high = figures["step_ratio_quartiles"]
    assert (low, high) == (sorted(ratios)[1], sorted(ratios)[3])
    assert (figures["compile_seconds"], figures["temp_bytes"]) == (3, 5)


@pytest.mark.slow
def test_it_prints_the_figures(short_turns):
    found = {}
    for batch_size in (16, 64):
        flags = (f"--batch_size={batch_size}", "--rounds=1", "--json")
        result = command("benchmark", *TINY, *flags)
        assert result.returncode == 0, result.stderr
        figures = found[batch_size] = json.loads(result.stdout)
        assert (figures["model"], figures["lowering"]) == ("lrunet", "cpu")
        assert figures["batch_size"] == batch_size
        # A training step has a forward pass, and about two more backwards.
        assert 0 < 2 * figures["inference_seconds"] < figures["step_seconds"] < 10
        assert 0 < figures["single_seconds"] < figures["step_seconds"]
        assert 0.1 < figures["compile_seconds"] < 300
    # Activations are most of it: four times as many images, but for the weights.
    assert 3 < found[64]["temp_bytes"] / found[16]["temp_bytes"] < 4.5
    assert found[64]["step_seconds"] > found[16]["step_seconds"]
    assert found[64]["inference_seconds"] > 2 * found[64]["single_seconds"]  # 64 to 1


@pytest.mark.slow
def test_lrunet_8_fits_in_its_memory():
    model = create_model("lrunet", layer_reuse=8)
    split = random_split(model, 256, (32, 32, 3))
    _, _, figures = our_workload(model, split, "float32")
    # One activation of each stage for every iteration.
    kept = 8 * 4 * 256 * (64 * 256 + 128 * 64 + 256 * 16 + 512 * 16)
    assert kept < figures["temp_bytes"] <= 0.6e9


@pytest.mark.slow
@needs_torch
def test_pytorch_takes_turns(short_turns, monkeypatch):
    flags = (*TINY, "--batch_size=4", "--torch")
    result = command("benchmark", *flags, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    for name in ("step", "inference", "single"):
        theirs = figures[f"torch_{name}_seconds"]
        assert 0 < theirs < 10
        low, high = figures[f"{name}_ratio_quartiles"]
        assert low <= figures[f"{name}_ratio"] <= high
    monkeypatch.setattr(benchmark, "benchmark", lambda *_, **__: figures)
    printed = command("benchmark", *flags).stdout
    ratios = re.findall(r"PyTorch / here ([\d.]+) \(([\d.]+) to ([\d.]+)\)", printed)
    assert len(ratios) == 3
    for ratio, low, high in ratios:
        assert float(low) <= float(ratio) <= float(high)


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
        (("--layer_reuse=0",), "model.layer_reuse is 0; it must be in [1, 1,000]"),
        (("--all", "--model=mobilenet"), "model is 'mobilenet'; it must be left out"),
        (("--all", "--layer_reuse=3"), "layer_reuse is 3; it must be left out with"),
        (
            ("--lowering=mapped",),
            "lowering is 'mapped'; known are auto, cpu, gpu, tpu, xla",
        ),
        (("--rounds=0",), "rounds is 0; it must be at least 1"),
        (("--rounds=3", "--torch"), "rounds is 3; it must be at least 5 with --torch"),
        (("--torch", "--dtype=bfloat16"), "dtype is 'bfloat16'; it must be float32"),
    ],
)
def test_a_mistake_gets_one_line(flags, message):
    result = command("benchmark", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
