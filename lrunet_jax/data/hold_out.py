"""Images that are held out of a set, by their labels and places alone."""

import numpy as np


def hold_out(
    labels: np.ndarray, count: int, seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into those that are kept and those that are held out.

    Each class gives in proportion, and keeps at least one image. What is drawn depends
    on the labels, the count and the seed alone.

    Args:
      labels: (n,) of the images.
      count: of the images to hold out; at most n less one for each class.
      seed: integers.

    Returns:
      The places of the kept images and those of the others, both ascending.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    shares = _in_proportion(sizes - 1, sizes, count)
    rng = np.random.default_rng(seed)
    held = [
        rng.permutation(np.flatnonzero(labels == name))[:share]
        for name, share in zip(classes, shares, strict=True)
    ]
    places = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), places), places


def _in_proportion(most, weights, count):
    """Whole numbers in proportion to `weights`, of sum `count`, each up to its most."""
    weights = weights * (most > 0)
    exact = count * weights / max(1, weights.sum())
    shares = np.minimum(np.floor(exact).astype(int), most)
    while (left := count - shares.sum()) > 0:
        # One each where most is lacking; of equals the first.
        order = np.argsort(shares - exact, kind="stable")
        shares[order[shares[order] < most[order]][:left]] += 1
    return shares
