"""Fixtures: float64, and the numbers of the PyTorch original where they are at hand."""

import os
import pathlib
import tempfile

# Many tests compile the same program, some of them in processes of their own.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp())

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent


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
