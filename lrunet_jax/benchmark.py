"""Times a model's training step and its inference.

    python -m lrunet_jax.benchmark --model=lrunet --layer_reuse=8 --batch_size=256

The training step is that of `train.py`, on random 32x32 colour images that lie on the
device: batch, augmentation, forward, backward, update, in float32.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from lrunet_jax import data
from lrunet_jax.command import add_model_fields, model_from, run
from lrunet_jax.epoch import steps_per_call
from lrunet_jax.errors import require
from lrunet_jax.models import list_models
from lrunet_jax.ops import resolve
from lrunet_jax.optim import create_optimizer
from lrunet_jax.state import TrainState, create_train_state
from lrunet_jax.steps import data_shardings, make_mesh, make_train_call

IMAGE_SHAPE = (32, 32, 3)
MAX_STEPS = 1000  # in a device call; an epoch has no more by far


def benchmark(model: nn.Module, batch_size: int, steps: int) -> dict[str, Any]:
    """Medians, over `steps` device calls each, of a training step and of inference.

    A device call for training makes as many steps as one of `train.py` makes.

    Returns:
      `step_seconds`, `inference_seconds`, `compile_seconds` and `temp_bytes` (of the
      training step's program).
    """
    mesh = make_mesh()
    replicated, _ = data_shardings(mesh)
    state = jax.device_put(_state(model), replicated)
    split = jax.device_put(_random_split(model, batch_size), replicated)
    key = jax.device_put(jax.random.key(0), replicated)
    augment = data.make_augment(size=32, padding=4, rotation=10.0, flip=True)

    began = time.perf_counter()
    batches = np.tile(np.arange(batch_size, dtype=np.int32), (MAX_STEPS, 1))
    call = make_train_call(augment, mesh)
    program = call.lower(state, split, batches, 0, 1, key).compile()
    compile_seconds = time.perf_counter() - began

    images = split.images.astype(jnp.float32) / 255
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    inference = jax.jit(model.apply)
    inference_seconds = _median_seconds(lambda: inference(variables, images), steps)

    def train(count):
        nonlocal state
        state = program(state, split, batches, 0, count, key)
        return state.step

    once = _median_seconds(lambda: train(1), 1)
    count = min(steps_per_call(once), MAX_STEPS)
    return {
        "step_seconds": _median_seconds(lambda: train(count), steps) / count,
        "inference_seconds": inference_seconds,
        "compile_seconds": compile_seconds,
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
    }


def _median_seconds(function: Callable[[], jax.Array], times: int) -> float:
    """Of `times` calls, after one that is not counted."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _state(model: nn.Module) -> TrainState:
    config = ml_collections.ConfigDict(
        {"weight_decay": 5e-4, "decay_of": "all", "momentum": 0.9, "nesterov": False}
    )
    tx = create_optimizer(config, lambda step: 0.1)
    return create_train_state(model, tx, jax.random.key(0), IMAGE_SHAPE)


def _random_split(model: nn.Module, size: int) -> data.Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *IMAGE_SHAPE), np.uint8)
    return data.Split(images, rng.integers(0, model.num_classes, size, np.int32))


def main() -> None:
    """Reads the arguments and prints the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m lrunet_jax.benchmark", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="lrunet", choices=list_models())
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="device calls counted")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    known, _ = parser.parse_known_args()
    add_model_fields(parser, known.model)
    args = parser.parse_args()
    for name in ("batch_size", "steps"):
        require(getattr(args, name) >= 1, name, getattr(args, name), "at least 1")

    model = model_from(args)
    device = jax.devices()[0]
    with jax.default_matmul_precision("highest"):
        figures = benchmark(model, args.batch_size, args.steps)
    figures = {
        "model": args.model,
        "batch_size": args.batch_size,
        **figures,
        "lowering": resolve(model.lowering),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    }
    if args.json:
        print(json.dumps(figures))
        return
    for name in ("step", "inference"):
        seconds = figures[f"{name}_seconds"]
        speed = args.batch_size / seconds
        print(f"{name:10} {seconds:.4f} s   {speed:,.0f} images/s")
    print(f"compile    {figures['compile_seconds']:.1f} s")
    print(f"temporary  {figures['temp_bytes'] / 1e6:,.0f} MB")
    print(f"lowering   {figures['lowering']} on {figures['device']}")


if __name__ == "__main__":
    run(main)
