"""What a step changes: the training state, with the epoch's running sums."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.training import train_state


class Metrics(struct.PyTreeNode):
    """Sums over images, so that means over any number of batches are exact."""

    loss: jax.Array  # sum of the cross entropies
    correct: jax.Array  # int32
    count: jax.Array  # int32

    @classmethod
    def zero(cls) -> "Metrics":
        """Of no images."""
        zero = lambda dtype: jnp.zeros((), dtype)  # a buffer each: they are donated
        return cls(zero(jnp.float32), zero(jnp.int32), zero(jnp.int32))

    @classmethod
    def of(cls, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> "Metrics":
        """Of the images (B,) that `mask` keeps, with their logits (B, classes)."""
        losses = cross_entropy(logits, labels)
        correct = (jnp.argmax(logits, -1) == labels) & mask
        return cls(
            jnp.sum(jnp.where(mask, losses, 0)),
            jnp.sum(correct, dtype=jnp.int32),
            jnp.sum(mask, dtype=jnp.int32),
        )

    def __add__(self, other: "Metrics") -> "Metrics":
        return jax.tree.map(lambda a, b: (a + b).astype(a.dtype), self, other)

    def means(self) -> dict[str, float]:
        """`loss` and `accuracy`, the latter a fraction, on the host."""
        loss, correct, count = map(float, (self.loss, self.correct, self.count))
        return {"loss": loss / count, "accuracy": correct / count}


class TrainState(train_state.TrainState):
    """Flax's state with batch statistics and the place in the data.

    Attributes:
      epoch: int32, epochs that are complete.
      metrics: of the epoch in progress; its count says how far that is.
    """

    batch_stats: Any
    epoch: jax.Array
    metrics: Metrics

    def next_epoch(self) -> "TrainState":
        """The state at the start of the epoch after this."""
        return self.replace(
            epoch=self.epoch + 1, metrics=jax.tree.map(jnp.zeros_like, self.metrics)
        )


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """A fresh state of `model` for images (H, W, channels)."""
    variables = jax.jit(model.init)(key, jnp.zeros((1, *image_shape)))
    state = TrainState.create(
        apply_fn=model.apply,
        tx=tx,
        epoch=jnp.zeros((), jnp.int32),
        metrics=Metrics.zero(),
        **variables,
    )
    return state.replace(step=jnp.zeros((), jnp.int32))  # Flax begins with an int


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Of each image, (B,), in at least float32."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
