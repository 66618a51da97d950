"""Leaves of a tree of arrays, by name: the same in memory and in Orbax's files."""

from typing import Any

import jax
import numpy as np


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, like `params/stage1/pw/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def not_finite(tree: Any) -> list[str]:
    """The names of those leaves that hold NaN or infinity."""
    leaves = leaves_by_name(tree).items()
    return [name for name, leaf in leaves if not np.isfinite(leaf).all()]


def leaf_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as a text."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
