"""The command `compile`: what it prints, and what it refuses."""

import json
import re

import pytest
from conftest import command, on_eight_devices, process
from tiny import FLAG, LRUNET

pytestmark = pytest.mark.usefixtures("shallow")

SMALL = (FLAG, "--config.dataset=cifar10")


def compiled(*arguments):
    return command("compile", "--topology=cpu:1", *SMALL, *arguments)


@pytest.mark.slow
def test_json_has_the_figures_of_a_device():
    result = compiled("--json", "--batch_size=16", "--dtype=bfloat16")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["topology"] == "cpu:1"
    assert found["devices"] == 1
    assert (found["batch_size"], found["dtype"]) == (16, "bfloat16")
    assert found["lowering"] == "cpu"
    assert found["memory"]["total"] == sum(
        value for kind, value in found["memory"].items() if kind != "total"
    )
    # The training set of CIFAR-10 lies on each device.
    assert found["memory"]["arguments"] > 50_000 * 32 * 32 * 3
    assert min(found["kernels"], found["bytes"], found["flops"]) > 0
    assert found["collectives"] == {}
    assert found["estimated_cycles"] is None


@pytest.mark.slow
def test_the_step_of_twice_the_images_is_twice_the_arithmetic():
    small, large = (
        json.loads(compiled("--json", f"--batch_size={size}").stdout)["flops"]
        for size in (64, 128)
    )
    assert 1.9 < large / small < 2.01  # the update is the same


def test_a_table_says_the_same():
    result = compiled("--batch_size=16")
    assert result.returncode == 0, result.stderr
    first, *rows = result.stdout.splitlines()
    assert first == "one training step, on each device"
    printed = dict(re.split(r"  +", row, maxsplit=1) for row in rows)
    assert printed["devices"] == "1 x CPU"
    assert printed["batch"] == "16, 16 on each device"
    assert printed["lowering"] == "cpu, float32"
    assert re.fullmatch(r"[\d,.]+ [MG]B, \d+\.\d% of .*", printed["memory, total"])
    assert {"kernels", "bytes", "flops"} < printed.keys()


@pytest.mark.slow
def test_the_largest_batch_fits_and_one_a_little_larger_does_not(monkeypatch):
    monkeypatch.setattr("lrunet_jax.topologies.device_memory", lambda: 300_000_000)
    result = compiled("--largest", "--json", "--config.batch_size=32")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["memory"]["total"] <= 300_000_000
    size, too_large = found["batch_size"], found["too_large"]
    assert size < too_large <= size + max(size // 64, 1)
    larger = json.loads(compiled("--json", f"--batch_size={too_large}").stdout)
    assert larger["memory"]["total"] > 300_000_000
    assert f"batch_size {size:,} fits" in result.stderr


@pytest.mark.slow
def test_where_the_smallest_batch_does_not_fit_it_is_said(monkeypatch):
    monkeypatch.setattr("lrunet_jax.topologies.device_memory", lambda: 1_000_000)
    result = compiled("--largest", "--config.batch_size=2")
    assert result.returncode == 2
    assert "error: batch_size is 1; it must be" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology=v5e:3x3",), "topology is 'v5e:3x3'; it must be v5e:SHAPE"),
        (("--topology=gpu",), "topology is 'gpu'; it must be v5e:SHAPE"),
        (("--dtype=float16",), "dtype is 'float16' (did you mean 'bfloat16'?)"),
        (("--batch_size=0",), "batch_size is 0; it must be at least 1"),
        (("--batch_size=60000",), "batch_size is 60000; it must be at most 50000"),
        (("--config.model.nam=x",), "config has no field 'model.nam'"),
        (("--config=none.py",), "there is no file none.py"),
        (("extra",), "unexpected argument 'extra'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    result = compiled(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_last_batch_that_devices_do_not_divide_counts_in_the_memory():
    flags = ("--config=configs/digits.py", *LRUNET, "--batch_size=720", "--json")
    # 717 of 1,437 images are left: 3 devices have a third each, 2 have all of them.
    two, three = (
        process(
            *("-m", "lrunet_jax.compile", f"--topology=cpu:{count}", *flags),
            env=on_eight_devices(),
        )
        for count in (2, 3)
    )
    assert two.returncode == three.returncode == 0, two.stderr + three.stderr
    temporary = [json.loads(r.stdout)["memory"]["temporary"] for r in (two, three)]
    assert temporary[0] > 2 * temporary[1]
