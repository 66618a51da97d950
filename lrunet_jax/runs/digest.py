"""Digests of what is stored, by which damage on a disk is seen."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lrunet_jax.runs.leaves import leaves_by_name


def array_digests(trees: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each tree of arrays, by its name.

    It is over the path, the dtype, the shape and the bytes in C order of each leaf, as
    the host has it: the same for any number of devices.
    """
    return {name: _of_arrays(tree) for name, tree in jax.device_get(trees).items()}


def json_digests(values: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of each value as JSON, by its name."""
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for name, value in values.items()
    }


def require_digests(stored: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compares the digests of what was found with those that were stored.

    Raises:
      ValueError: that names the first item that differs, has no digest, or is missing.
    """
    for name in sorted(stored.keys() | found.keys()):
        if stored.get(name) != found.get(name):
            raise ValueError(f"{name} differs from its digest")


def _of_arrays(tree):
    total = hashlib.sha256()
    for name, leaf in sorted(leaves_by_name(tree).items()):
        array = np.ascontiguousarray(leaf)
        total.update(f"{name} {array.dtype} {np.shape(leaf)}\n".encode())
        total.update(array.view(np.uint8).data)
    return total.hexdigest()
