"""Batches: the images of each step."""

import numpy as np


def last_batch_size(num_images: int, batch_size: int) -> int:
    """The number of images in the last batch of an epoch."""
    return (num_images - 1) % batch_size + 1


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """A permutation (num_images,) int32 of the images: the epoch's order.

    It depends on nothing but the arguments, so a step's images follow from the seed
    and the step.
    """
    rng = np.random.default_rng((seed, epoch))
    return rng.permutation(num_images).astype(np.int32)


def train_batches(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The full batches of an epoch (n, batch_size), and the smaller last one.

    The latter is (1, images) or, if there is none, (0, 0).
    """
    full = len(order) // batch_size * batch_size
    tail = order[np.newaxis, full:]
    return order[:full].reshape(-1, batch_size), tail[: tail.size]


def eval_batches(num_images: int, batch_size: int) -> np.ndarray:
    """Batches of every image once, in order: (n, batch_size) int32, padded with -1."""
    count = -(-num_images // batch_size)
    batches = np.full(count * batch_size, -1, np.int32)
    batches[:num_images] = np.arange(num_images)
    return batches.reshape(-1, batch_size)
