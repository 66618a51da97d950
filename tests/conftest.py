"""Fixtures: float64, and the numbers of the PyTorch original where they are at hand."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Many tests compile the same program, some of them in processes of their own.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())

import jax
import pytest

from configs import lrunet

ROOT = pathlib.Path(__file__).parent.parent


def command(name, *arguments):
    """Runs `python -m lrunet_jax.NAME ARGUMENTS...` to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"lrunet_jax.{name}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def make_run(tmp_path):
    """Makes the workdir of a run with the given test accuracies, one an epoch."""

    def make(name, accuracies, argument="fashion_mnist", **fields):
        config = lrunet.get_config(argument)
        config.update_from_flattened_dict(fields)
        config.epochs = 6
        lines = [
            {
                "step": 10 * epoch,
                "epoch": epoch,
                "train_loss": 1 / epoch,
                "train_accuracy": accuracy - 0.125,
                "test_loss": 2 / epoch,
                "test_accuracy": accuracy,
            }
            for epoch, accuracy in enumerate(accuracies, start=1)
        ]
        workdir = tmp_path / name
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict()))
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text)
        return str(workdir)

    return make


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of golden numbers, checkpoints and prepared data sets."""
    path = pathlib.Path(os.environ.get("LRUNET_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        reason = f"{path} is not there; LRUNET_SHARED names another place"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path
