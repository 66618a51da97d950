"""Each command as a process of its own; what it does is tested elsewhere."""

import os
import subprocess

import pytest
from conftest import process
from test_layout import COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_says_what_it_takes(name):
    result = process("-m", f"lrunet_jax.{name}", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m lrunet_jax.{name} ")


def test_a_mistake_is_status_2_and_a_line_on_standard_error():
    result = process("-m", "lrunet_jax.evaluate", "nowhere.pt")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: path is 'nowhere.pt'; it must be ")
    assert result.stderr.count("\n") == 1
    result = process("train.py", "--config.epochs=0")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: epochs is 0; it must be at least 1\n"


def test_a_reader_who_has_seen_enough_is_no_mistake():
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ("-m", "lrunet_jax.results", "docs/cifar10-lru1-paper")
    outputs = {"stdout": writing, "stderr": subprocess.PIPE}
    result = process(*arguments, capture_output=False, **outputs)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")
