"""Evaluation on a whole test set, every image once."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lrunet_jax import data, ops
from lrunet_jax.memory import memory_taken
from lrunet_jax.train.devices import (
    IN_SHARES,
    SAME_ON_ALL,
    batch_on,
    make_mesh,
    on_each_device,
    replicated,
)
from lrunet_jax.train.state import Metrics, TrainState, cross_entropy


class Evaluation(NamedTuple):
    """A network's answers to a test set.

    Attributes:
      logits: (n, classes) float32.
      correct: (classes,), how many images of each class are recognised.
      total: (classes,), the images of each class.
      loss: the mean cross entropy of an image, in nats.
      images_per_second: compilation not counted.
    """

    logits: np.ndarray
    correct: np.ndarray
    total: np.ndarray
    loss: float
    images_per_second: float


def evaluate(
    model: nn.Module, variables: Any, split: data.Split, batch_size: int
) -> Evaluation:
    """Evaluates `model` on a whole split, on all devices of this one process.

    Always at the highest precision: by default a TPU multiplies float32 in bfloat16
    and a GPU in TF32.

    Args:
      model: the network.
      variables: `params`, `batch_stats` and, if images are normalised, `input_stats`.
      split: the test set.
      batch_size: images at a time, over all devices.
    """
    count, mesh = len(split.labels), make_mesh()
    placed = jax.device_put((variables, split), replicated(mesh))
    with jax.default_matmul_precision("highest"):
        program, _ = _compile(model.apply, placed, min(batch_size, count), mesh)
    began = time.perf_counter()
    _, logits = jax.device_get(program(*placed))
    seconds = time.perf_counter() - began
    logits = np.array(logits.reshape(-1, logits.shape[-1])[:count])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    recognised = split.labels[np.argmax(logits, -1) == split.labels]
    return Evaluation(
        logits=logits,
        correct=np.bincount(recognised, minlength=model.num_classes),
        total=np.bincount(split.labels, minlength=model.num_classes),
        loss=float(np.mean(np.asarray(losses), dtype=np.float64)),
        images_per_second=count / seconds,
    )


def compile_evaluation(
    state: TrainState, split: data.Split, batch_size: int, mesh: Mesh
) -> tuple[Callable[[TrainState, data.Split, str], dict[str, float]], int]:
    """A compiled function from a state to its metrics: `test_loss`, `test_accuracy`.

    With moving averages also `test_ema_loss` and `test_ema_accuracy`.

    Args:
      state: an example, with the shapes and shardings of those to come.
      split: what it is called with, or the same as abstract arrays with shardings.
      batch_size: images at a time, over all devices.
      mesh: the devices.

    Returns:
      The function, of a state, the split and its name, and the bytes that it takes.
    """
    program, taken = _compile(
        state.apply_fn, (state.variables(), split), batch_size, mesh
    )

    def evaluate_state(state, split, name):
        found: dict[str, float] = {}
        for kind, variables in state.evaluated().items():
            metrics, _ = program(variables, split)
            found |= metrics.means(f"{name}_{kind}")
        return found

    return evaluate_state, taken


def _compile(apply_fn, example, batch_size, mesh):
    """The program (variables, split) -> (Metrics, logits), and the bytes it takes."""
    _, split = example
    in_equal_shares = -(-batch_size // mesh.size) * mesh.size
    batches = data.eval_batches(split.labels.shape[0], in_equal_shares)
    program = make_eval_call(apply_fn, mesh).lower(*example, batches).compile()
    call = lambda variables, split: program(variables, split, batches)
    return call, memory_taken(program)


def make_eval_call(
    apply_fn: Callable[..., Any], mesh: Mesh, dtype: str = "float32"
) -> Any:
    """A jitted function (variables, split, batches) -> (Metrics, logits).

    The batches (n, B) are indices of the split's images, -1 where there is none; the
    devices divide B. The metrics are over all images; the logits (n, B, classes) are
    those of the batches, computed in `dtype`, each device's on that device.
    """

    def call(variables, split, batches):
        assert batches.shape[1] % mesh.size == 0, "the devices must divide a batch"

        def body(metrics, indices):
            indices = ops.own_share(indices)
            places = jnp.maximum(indices, 0)
            images, labels = split.images[places], split.labels[places]
            logits = apply_fn(variables, data.to_float(images, dtype), train=False)
            losses = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
            return metrics + Metrics.of(losses, logits, labels, indices >= 0), logits

        with batch_on(mesh, batches.shape[1]):
            metrics, logits = lax.scan(body, Metrics.zero(), batches)
            _, metrics = ops.over_batch((), metrics)
        return metrics, logits

    shares_of_batches = PartitionSpec(None, *IN_SHARES)
    return jax.jit(on_each_device(call, mesh, (SAME_ON_ALL, shares_of_batches)))
