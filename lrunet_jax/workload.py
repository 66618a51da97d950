"""The work that the benchmark times: training and inference, here and in PyTorch."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from lrunet_jax import data
from lrunet_jax.memory import memory_taken, require_memory
from lrunet_jax.train.devices import make_mesh, replicated
from lrunet_jax.train.optim import create_optimizer
from lrunet_jax.train.state import create_train_state
from lrunet_jax.train.step import make_train_call

CROP = 32  # pixels that a training step sees, of images of 28 too
MAX_COUNT = 100  # steps in a turn

Timed = Callable[[int], Any]  # does its work so many times, returns when it is done


class Workload(NamedTuple):
    """Functions to time; each takes a count, works so many times, and returns None.

    Attributes:
      step: training steps, in one device call.
      inference: the logits of batches, in one device call.
      single: the logits of one image, in a device call for each time.
    """

    step: Timed
    inference: Timed
    single: Timed


def our_workload(
    model: nn.Module, split: data.Split, dtype: str
) -> tuple[Workload, dict[str, Any], dict[str, float]]:
    """The workload of `model`, in batches of the whole `split`.

    Returns:
      The workload, the weights that it begins with, and the figures of the training
      step's program: `compile_seconds` and `temp_bytes`.
    """
    mesh = make_mesh()
    on_all = replicated(mesh)
    batch_size, *image_shape = split.images.shape
    tx = create_optimizer(lambda epoch: 0.1)
    state = create_train_state(
        model, tx, jax.random.key(0), tuple(image_shape), num_images=batch_size
    )
    state = jax.device_put(state, on_all)
    variables = jax.tree.map(np.asarray, state.learned())
    split = jax.device_put(split, on_all)
    key = jax.device_put(jax.random.key(0), on_all)
    augmentation = data.Augmentation(size=CROP, padding=4, rotation=10.0, flip=True)
    batches = jnp.tile(jnp.arange(batch_size, dtype=jnp.int32), (MAX_COUNT, 1))
    batches = jax.device_put(batches, on_all)
    lowered = make_train_call(augmentation, mesh, dtype).lower(
        state, split, batches, 0, 1, key
    )
    began = time.perf_counter()
    program = lowered.compile()
    require_memory("the training step", memory_taken(program))
    figures = {
        "compile_seconds": time.perf_counter() - began,
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
    }

    def step(count):
        nonlocal state
        state = program(state, split, batches, 0, count, key)
        jax.block_until_ready(state.step)

    on_device = jax.device_put(variables, on_all)
    images = data.to_float(split.images, dtype)
    two_batches = jnp.stack([images, images[::-1]])  # no trip repeats the one before
    logits = jnp.zeros((batch_size, model.num_classes), dtype)

    @jax.jit
    def infer_batches(variables, batches, count):
        apply = lambda i, _: model.apply(variables, batches[i % 2])
        return lax.fori_loop(0, count, apply, logits)

    infer = jax.jit(model.apply)
    workload = Workload(
        step,
        lambda count: jax.block_until_ready(
            infer_batches(on_device, two_batches, count)
        ),
        _often(lambda: jax.block_until_ready(infer(on_device, images[:1]))),
    )
    return workload, variables, figures


def random_split(
    model: nn.Module, size: int, image_shape: tuple[int, int, int]
) -> data.Split:
    """A split of `size` random images (H, W, channels), with labels for `model`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *image_shape), np.uint8)
    return data.Split(images, rng.integers(0, model.num_classes, size, np.int32))


def torch_workload(
    arguments: dict[str, Any], variables: dict[str, Any], split: data.Split
) -> Workload:
    """The workload in PyTorch, in a process of its own, without the threads of JAX.

    Args:
      arguments: of `create_torch_model`.
      variables: the weights that it begins with.
      split: the images of a batch, with their labels.
    """
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    spawning.Process(
        target=_serve, args=(theirs, arguments, variables, split), daemon=True
    ).start()
    theirs.close()  # so that its end is noticed here

    def ask(name):
        def wait(count):
            ours.send((name, count))
            ours.recv()

        return wait

    return Workload(*map(ask, Workload._fields))


def _serve(connection, arguments, variables, split):
    workload = _torch_workload(arguments, variables, split)
    with contextlib.suppress(EOFError):  # the other side is done
        while True:
            name, count = connection.recv()
            getattr(workload, name)(count)
            connection.send(None)


def _torch_workload(arguments, variables, split):
    import torch

    from lrunet_jax.weights.torch_models import from_variables

    torch.set_num_threads(os.cpu_count() or 1)
    model = from_variables(arguments, split.images.shape[3], variables)
    frozen = from_variables(arguments, split.images.shape[3], variables).eval()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
    )
    images = torch.from_numpy(split.images).movedim(3, 1).float() / 255
    images = images.contiguous(memory_format=torch.channels_last)
    # The augmentation makes 32x32 of 28x28.
    margin = (CROP - images.shape[3]) // 2
    crops = torch.nn.functional.pad(images, [margin] * 4)
    crops = crops.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(split.labels).long()

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(crops), labels).backward()
        optimizer.step()

    infer = torch.inference_mode()(frozen)
    return Workload(
        _often(step), _often(lambda: infer(images)), _often(lambda: infer(images[:1]))
    )


def _often(function: Callable[[], Any]) -> Timed:
    def times(count):
        for _ in range(count):
            function()

    return times
