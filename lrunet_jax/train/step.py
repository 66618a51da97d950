"""One training step, and device calls that run many."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from lrunet_jax import data, ops
from lrunet_jax.train.devices import batch_on, on_each_device
from lrunet_jax.train.freeze import in_evaluation
from lrunet_jax.train.state import Metrics, TrainState, cross_entropy


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    rng: jax.Array,
    mirrored: tuple[jax.Array, jax.Array] | None = None,
) -> TrainState:
    """Takes a step of SGD on the mean cross entropy of a batch.

    Frozen modules run as in evaluation, and have no gradient.

    Args:
      state: before the step.
      images: (B, H, W, channels) in [0, 1]; their dtype is the one to compute in. Of a
        batch that devices share, this device's.
      labels: (B,) int32.
      rng: PRNG key for mixup and dropout.
      mirrored: for mixup, the images and labels at the mirrored places of the batch;
        by default those given, reversed, as of a batch that is whole.

    Returns:
      The state after the step, with the batch's metrics added to its own.
    """
    targets_key, dropout_key = jax.random.split(rng)
    images, targets = state.targets(targets_key, images, labels, mirrored)

    def loss_fn(trained):
        with in_evaluation(state.frozen):
            logits, updates = state.apply_fn(
                state.variables() | {"params": state.params | trained},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
        losses = cross_entropy(logits, targets)
        return jnp.mean(losses), (losses, logits, updates)

    gradients = jax.grad(loss_fn, has_aux=True)
    grads, (losses, logits, updates) = gradients(state.trained(state.params))
    metrics = Metrics.of(losses, logits, labels, jnp.ones(labels.shape, bool))
    grads, metrics = ops.over_batch(grads, metrics)
    state = state.apply_gradients(
        grads=grads,
        batch_stats=updates["batch_stats"],
        metrics=state.metrics + metrics,
    )
    return state.update_ema()


def make_train_call(
    augmentation: data.Augmentation, mesh: Mesh, dtype: str = "float32"
) -> Any:
    """A jitted function that runs steps of an epoch in one device call.

        state = call(state, split, batches, start, stop, key)

    The state is donated. `split` is the training set, on the devices, and `batches`
    (n, B) are the epoch's, by the indices of their images; those from `start` to before
    `stop` are run. `key` and the state's step give each step its randomness. One
    compiled program serves any number of steps.

    Args:
      augmentation: of the images.
      mesh: the devices.
      dtype: to compute in; parameters and statistics keep theirs.
    """

    def call(state, split, batches, start, stop, key):
        shape = (batches.shape[1], *split.images.shape[1:])

        def take(indices, transforms):
            images = augmentation.apply(split.images[indices], transforms)
            return data.to_float(images, dtype), split.labels[indices]

        def body(i, state):
            step_key = jax.random.fold_in(key, state.step)
            augment_key, step_key = jax.random.split(step_key)
            whole = batches[i], augmentation.draw(augment_key, shape)
            # Each device makes the images that it needs: none is sent. Without mixup
            # the mirrored ones are not computed.
            mirrored = jax.tree.map(lambda a: a[::-1], whole)
            images, labels = take(*ops.own_share(whole))
            mirrored = take(*ops.own_share(mirrored))
            return train_step(state, images, labels, step_key, mirrored)

        with batch_on(mesh, batches.shape[1]):
            return lax.fori_loop(start, stop, body, state)

    return jax.jit(on_each_device(call, mesh), donate_argnums=0)
