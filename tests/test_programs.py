"""Compiled programs in the user's cache, and what a notebook sees."""

import os

import pytest
from conftest import ROOT, process

NOTEBOOK = """
import asyncio, sys
import jax
jax.jit(lambda x: x + 1)(1.0)  # as a cell before
import lrunet_jax
import tiny

async def cell():
    config = tiny.get_config()
    config.update(eval_every=2, batch_size=479)
    lrunet_jax.train_and_evaluate(config, sys.argv[1])
    config.epochs = 3
    lrunet_jax.train_and_evaluate(config, sys.argv[1])
    model, variables = lrunet_jax.load(sys.argv[1])
    logits = jax.jit(model.apply)(variables, jax.numpy.zeros((2, 32, 32, 1)))
    print("logits", logits.shape)

asyncio.run(cell())
"""


@pytest.mark.slow
def test_training_and_loading_within_a_running_event_loop(tmp_path):
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **own, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    arguments = ("-c", NOTEBOOK, tmp_path / "run")
    result = process(*arguments, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert "logits (2, 10)" in result.stdout
    # Compiled programs are kept, as by the commands.
    assert any((tmp_path / "cache" / "lrunet_jax" / "programs").rglob("jit_call*"))
