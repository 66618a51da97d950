"""One training step, and device calls that run many."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding

from lrunet_jax import data
from lrunet_jax.train.devices import data_shardings
from lrunet_jax.train.state import Metrics, TrainState, cross_entropy

Augment = Callable[[jax.Array, jax.Array], jax.Array]


def train_step(
    state: TrainState, images: jax.Array, labels: jax.Array, rng: jax.Array
) -> TrainState:
    """Takes a step of SGD on the mean cross entropy of a batch.

    Args:
      state: before the step.
      images: (B, H, W, channels) in [0, 1]; their dtype is the one to compute in.
      labels: (B,) int32.
      rng: PRNG key for mixup and dropout.

    Returns:
      The state after the step, with the batch's metrics added to its own.
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


def make_train_call(augment: Augment, mesh: Mesh, dtype: str = "float32") -> Any:
    """A jitted function that runs steps of an epoch in one device call.

        state = call(state, split, batches, start, stop, key)

    The state is donated. `split` is the training set, on the devices, and `batches`
    (n, B) are the epoch's, by the indices of their images; those from `start` to before
    `stop` are run. `key` and the state's step give each step its randomness. One
    compiled program serves any number of steps.

    Args:
      augment: see `data.make_augment`.
      mesh: the devices.
      dtype: to compute in; parameters and statistics keep theirs.
    """
    replicated, sharded = data_shardings(mesh)

    def call(state, split, batches, start, stop, key):
        def body(i, state):
            augment_key, step_key = jax.random.split(
                jax.random.fold_in(key, state.step)
            )
            images, labels = take_batch(split, batches[i], sharded)
            images = data.to_float(augment(augment_key, images), dtype)
            return train_step(state, images, labels, step_key)

        return lax.fori_loop(start, stop, body, state)

    return jax.jit(call, donate_argnums=0, out_shardings=replicated)


def take_batch(
    split: data.Split, indices: jax.Array, sharding: NamedSharding
) -> tuple[jax.Array, jax.Array]:
    """The images and labels of a batch.

    Args:
      split: images (n, H, W, channels) uint8 and labels (n,).
      indices: (B,) of the batch.
      sharding: of the batch, where the number of devices divides B; else each device
        takes the whole batch.
    """
    if indices.shape[0] % sharding.mesh.size == 0:
        indices = lax.with_sharding_constraint(indices, sharding)
    return split.images[indices], split.labels[indices]
