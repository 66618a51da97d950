"""The training state, with the running sums of the epoch in progress."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.training import train_state

from lrunet_jax.train.targets import Targets, make_targets


class Metrics(struct.PyTreeNode):
    """Sums over images, so that means over any number of batches are exact.

    Attributes:
      loss: the sum of the cross entropies, in nats.
      correct: the number of images that are recognised.
      count: the number of images.
    """

    loss: jax.Array  # float32
    correct: jax.Array  # int32
    count: jax.Array  # int32

    @classmethod
    def zero(cls) -> "Metrics":
        """The sums over no images."""
        zero = lambda dtype: jnp.zeros((), dtype)  # a buffer each: they are donated
        return cls(zero(jnp.float32), zero(jnp.int32), zero(jnp.int32))

    @classmethod
    def of(
        cls, losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> "Metrics":
        """The sums over those images of a batch that `mask` (B,) keeps.

        Args:
          losses: (B,).
          logits: (B, classes).
          labels: (B,).
          mask: (B,) bool.
        """
        correct = (jnp.argmax(logits, -1) == labels) & mask
        return cls(
            jnp.sum(jnp.where(mask, losses, 0)),
            jnp.sum(correct, dtype=jnp.int32),
            jnp.sum(mask, dtype=jnp.int32),
        )

    def __add__(self, other: "Metrics") -> "Metrics":
        return jax.tree.map(lambda a, b: (a + b).astype(a.dtype), self, other)

    def means(self, prefix: str = "") -> dict[str, float]:
        """`loss` and `accuracy`, the latter a fraction, on the host, with a prefix."""
        loss, correct, count = map(float, (self.loss, self.correct, self.count))
        return {f"{prefix}loss": loss / count, f"{prefix}accuracy": correct / count}


class TrainState(train_state.TrainState):
    """Flax's state with batch statistics and the place in the data.

    Attributes:
      batch_stats: the running statistics of the norms.
      input_stats: `mean` and `std` (channels,) of the training images, by which the
        network normalises its input; empty if it does not.
      ema: moving averages of `params` and `batch_stats`; empty if `ema_decay` is 0.
      epoch: int32, the number of epochs that are complete.
      metrics: sums over the images already seen in the epoch in progress.
      targets: a function that makes the targets of a batch, see `make_targets`.
      ema_decay: of the moving averages; 0 for none.
      num_images: the number of images in an epoch.
      frozen: the top-level modules that are not trained, see `frozen_modules`; the
        optimiser has no state for them.
    """

    batch_stats: Any
    input_stats: Any
    ema: Any
    epoch: jax.Array
    metrics: Metrics
    targets: Targets = struct.field(pytree_node=False)
    ema_decay: float = struct.field(pytree_node=False)
    num_images: int = struct.field(pytree_node=False)
    frozen: tuple[str, ...] = struct.field(pytree_node=False)

    def epochs_done(self) -> jax.Array:
        """The epochs done, with the fraction of the one in progress, below 1."""
        # Images are seen twice where a run goes on, within an epoch, in larger batches.
        seen = jnp.minimum(self.metrics.count, self.num_images - 1)
        return self.epoch + seen / self.num_images

    def epoch_is_done(self) -> bool:
        """Tells whether all images of the epoch in progress have been seen."""
        return int(self.metrics.count) >= self.num_images

    def trained(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Those entries of `params`, or of another dict by module, that are trained."""
        return {name: tree[name] for name in tree if name not in self.frozen}

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> "TrainState":
        """The state after an update by `grads`, with other fields from `kwargs`.

        Gradients are those of what is trained.
        """
        params = self.trained(self.params)
        updates, opt_state = self.tx.update(
            grads, self.opt_state, params, epoch=self.epochs_done()
        )
        params = self.params | optax.apply_updates(params, updates)
        return self.replace(
            step=self.step + 1, params=params, opt_state=opt_state, **kwargs
        )

    def begin_with(self, variables: dict[str, Any]) -> "TrainState":
        """The state with other `params` and `batch_stats`, also as its averages.

        Of `params` those modules that are not in `variables` stay.
        """
        copy = lambda tree: jax.tree.map(jnp.copy, tree)  # what is donated is no alias
        learned = variables | {"params": self.params | variables["params"]}
        averages = copy(learned) if self.ema_decay else {}
        return self.replace(**learned, ema=averages)

    def learned(self) -> dict[str, Any]:
        """The variables that training changes: `params` and `batch_stats`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def variables(self) -> dict[str, Any]:
        """All variables that the network is applied with."""
        return self.learned() | {"input_stats": self.input_stats}

    def evaluated(self) -> dict[str, dict[str, Any]]:
        """The variables to evaluate, by what their metrics are called: ``, `ema_`."""
        averages = {"ema_": self.variables() | self.ema} if self.ema else {}
        return {"": self.variables()} | averages

    def update_ema(self) -> "TrainState":
        """The state with its averages moved towards the weights.

        The decay is at most (1 + step) / (10 + step), so that the averages follow
        faster at first, as in TensorFlow's ExponentialMovingAverage with
        `num_updates`. Those of frozen modules stay: rounding would move an average of
        equal values.
        """
        decay = jnp.minimum(self.ema_decay, (1 + self.step) / (10 + self.step))
        old = {name: self.trained(tree) for name, tree in self.ema.items()}
        new = {name: self.trained(self.learned()[name]) for name in old}
        moved = optax.incremental_update(new, old, 1 - decay)
        return self.replace(ema={n: self.ema[n] | moved[n] for n in moved})

    @jax.jit  # by itself, an array of zeros would be this process's alone
    def next_epoch(self) -> "TrainState":
        """The state at the start of the following epoch."""
        return self.replace(
            epoch=self.epoch + 1, metrics=jax.tree.map(jnp.zeros_like, self.metrics)
        )


def create_train_state(
    model: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    image_shape: tuple[int, int, int],
    *,
    num_images: int,
    input_stats: dict[str, Any] | None = None,
    targets: Targets | None = None,
    ema_decay: float = 0.0,
    frozen: tuple[str, ...] = (),
) -> TrainState:
    """A fresh state of `model` for images (H, W, channels).

    Args:
      model: the network.
      tx: the optimiser, see `create_optimizer`.
      key: PRNG key for the weights.
      image_shape: (H, W, channels).
      num_images: the number of images in an epoch.
      input_stats: `mean` and `std` (channels,) by which images are normalised; by
        default they are not.
      targets: see `make_targets`; by default the labels as they are.
      ema_decay: of the moving averages; 0 for none.
      frozen: the top-level modules that are not trained.
    """

    @jax.jit  # by itself, each shape of the optimiser's zeros is compiled every time
    def create(key):
        variables: Any = model.init(key, jnp.zeros((1, *image_shape)))
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            apply_fn=model.apply,
            tx=tx,
            opt_state={},
            input_stats=input_stats or {},
            ema={},
            epoch=jnp.zeros((), jnp.int32),
            metrics=Metrics.zero(),
            targets=targets or make_targets(model.num_classes),
            ema_decay=ema_decay,
            num_images=num_images,
            frozen=frozen,
            **variables,
        )
        state = state.replace(opt_state=tx.init(state.trained(state.params)))
        return state.begin_with(variables)

    return create(key)


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Tells whether loss, parameters and statistics are all finite."""
    leaves = jax.tree.leaves((state.metrics.loss, state.params, state.batch_stats))
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The cross entropy of each image, (B,), in at least float32.

    Args:
      logits: (B, classes).
      targets: (B, classes), the share of each class.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy(logits, targets)
