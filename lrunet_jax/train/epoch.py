"""The steps of an epoch, in device calls of a few seconds each."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrunet_jax import data
from lrunet_jax.memory import memory_taken
from lrunet_jax.train import processes
from lrunet_jax.train.devices import replicated
from lrunet_jax.train.state import TrainState
from lrunet_jax.train.step import make_train_call

# How long a person, or a signal, waits. On CPU each call gets its memory fresh from the
# system, and for ShuffleNet those page faults take as long as a step: half as many
# seconds a call made it a third slower. (glibc can be told to keep freed memory, but
# then its heap grows to five times what a call needs.)
SECONDS_PER_CALL = 8.0


class EpochLoop:
    """Trains epoch by epoch on a data set that lies on the devices.

    A call runs as many steps as take SECONDS_PER_CALL, so that the host does not delay
    a fast device, and a slow one still shows its progress. Where calls begin and end
    makes no difference to the result.

    Attributes:
      memory_taken: the bytes that a call takes on each device, arguments included.
    """

    def __init__(
        self,
        state: TrainState,
        train_set: data.Split,
        augmentation: data.Augmentation,
        mesh: Mesh,
        batch_size: int,
        seed: int,
        dtype: str,
    ):
        """Compiles the step, and the one of the last, smaller batch.

        Args:
          state: of the run, and `train_set`: what they are called with, or the same as
            abstract arrays with shardings.
          train_set: the training set.
          augmentation: of the images.
          mesh: the devices.
          batch_size: images per step, over all devices.
          seed: of the order of the images and of each step's randomness.
          dtype: to compute in.
        """
        self._num_images = train_set.labels.shape[0]
        self._batch_size = batch_size
        self._seed = seed
        on_all = replicated(mesh)
        self._key = jax.jit(lambda: jax.random.key(seed), out_shardings=on_all)()
        self._steps = 1
        call = make_train_call(augmentation, mesh, dtype)
        self._programs: list[Any] = [
            call.lower(state, train_set, batches, 0, 0, self._key).compile()
            if len(batches)
            else None
            for batches in self._batches(epoch=0)
        ]
        self._before: Any = None  # the state before the latest call
        self.memory_taken = max(memory_taken(p) for p in self._programs if p)

    def run(
        self, state: TrainState, train_set: data.Split, at_a_time: int = 0
    ) -> Iterator[TrainState]:
        """Trains to the end of the state's epoch.

        Args:
          state: to begin with.
          train_set: on the devices.
          at_a_time: the steps of a call, in place of as many as take SECONDS_PER_CALL.

        Yields:
          The state after each call, which is given to the next one: its memory too.
        """
        full, tail = self._batches(int(state.epoch))
        step = int(state.metrics.count) // self._batch_size
        for program, batches, offset in zip(
            self._programs, (full, tail), (0, len(full)), strict=True
        ):
            while step < offset + len(batches):
                start = step - offset
                stop = min(start + (at_a_time or self._steps), len(batches))
                self._before = None  # its memory is free for the next
                self._before = _copy(state)
                began = time.perf_counter()
                state = program(state, train_set, batches, start, stop, self._key)
                jax.block_until_ready(state.step)
                seconds = processes.largest(time.perf_counter() - began)
                # Slowly upwards: one short call must not make the next one endless.
                steps = steps_per_call(seconds / (stop - start))
                self._steps = min(steps, 5 * self._steps)
                step = offset + stop
                yield state
        self._before = None

    def once_more(self, train_set: data.Split) -> Iterator[TrainState]:
        """Takes the steps of the latest call once more, and yields each one's state."""
        return self.run(self._before, train_set, at_a_time=1)

    def _batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = data.epoch_order(self._seed, epoch, self._num_images)
        return data.train_batches(order, self._batch_size)


@jax.jit
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def steps_per_call(seconds: float, call_seconds: float = SECONDS_PER_CALL) -> int:
    """The number of steps of `seconds` each that make a call of `call_seconds`."""
    return max(1, round(call_seconds / seconds))
