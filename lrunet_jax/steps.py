"""One training step and one evaluation step, and device calls that run many."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lrunet_jax.data import Split
from lrunet_jax.state import Metrics, TrainState, cross_entropy

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def train_step(
    state: TrainState, images: jax.Array, labels: jax.Array, rng: jax.Array
) -> TrainState:
    """A step of SGD on the mean cross entropy of a batch.

    Args:
      state: whose metrics take up the batch's.
      images: (B, H, W, channels) in [0, 1]; their dtype is the computation's.
      labels: (B,) int32.
      rng: key of mixup and dropout.
    """
    targets_key, dropout_key = jax.random.split(rng)
    images, targets = state.targets(targets_key, images, labels)

    def loss_fn(params):
        logits, updates = state.apply_fn(
            state.variables() | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = cross_entropy(logits, targets)
        return jnp.mean(losses), (losses, logits, updates)

    gradients = jax.grad(loss_fn, has_aux=True)
    grads, (losses, logits, updates) = gradients(state.params)
    metrics = Metrics.of(losses, logits, labels, jnp.ones(labels.shape, bool))
    state = state.apply_gradients(
        grads=grads,
        batch_stats=updates["batch_stats"],
        metrics=state.metrics + metrics,
    )
    return state.update_ema()


def eval_step(
    state: TrainState, images: jax.Array, labels: jax.Array, mask: jax.Array
) -> Metrics:
    """The metrics of those images of a batch that `mask` (B,) keeps."""
    logits = state.apply_fn(state.variables(), images, train=False)
    losses = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
    return Metrics.of(losses, logits, labels, mask)


def make_train_call(augment: Augment, mesh: Mesh, dtype: str = "float32") -> Any:
    """A jitted function that runs steps of an epoch in one device call.

    They compute in `dtype`; parameters and statistics stay as they are.

    Its arguments are the state, which is donated, the data set's `Split` on the
    device, the epoch's batches (n, B) of image indices, the first of them to run and
    the one before which to stop, and a key that, with the state's step, gives each
    step's randomness. The number of steps is no part of the program: one compilation
    serves all. It returns the state.
    """
    replicated, sharded = data_shardings(mesh)

    def call(state, data, batches, start, stop, key):
        def body(i, state):
            augment_key, step_key = jax.random.split(
                jax.random.fold_in(key, state.step)
            )
            images, labels = _take(data, batches[i], sharded)
            images = augment(augment_key, images)
            images = _to_float(images).astype(dtype)
            return train_step(state, images, labels, step_key)

        return lax.fori_loop(start, stop, body, state)

    return jax.jit(call, donate_argnums=0, out_shardings=replicated)


def make_eval_call(mesh: Mesh) -> Any:
    """A jitted function (state, data, batches) -> Metrics over all the batches.

    The batches (n, B) are image indices, -1 where there is none.
    """
    replicated, sharded = data_shardings(mesh)

    def call(state, data, batches):
        def body(i, metrics):
            indices = batches[i]
            images, labels = _take(data, jnp.maximum(indices, 0), sharded)
            return metrics + eval_step(state, _to_float(images), labels, indices >= 0)

        return lax.fori_loop(0, batches.shape[0], body, Metrics.zero())

    return jax.jit(call, out_shardings=replicated)


def make_mesh() -> Mesh:
    """All devices along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))


def data_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """What all devices hold, and what is split between them along its first axis."""
    return (
        NamedSharding(mesh, PartitionSpec()),
        NamedSharding(mesh, PartitionSpec("data")),
    )


def _take(data: Split, indices, sharding):
    """A batch by its indices, split between the devices where they divide it."""
    if indices.shape[0] % sharding.mesh.size == 0:
        indices = lax.with_sharding_constraint(indices, sharding)
    return data.images[indices], data.labels[indices]


def _to_float(images):
    return images.astype(jnp.float32) / 255
