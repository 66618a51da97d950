"""Trained networks, opened from whatever holds them, and written again."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lrunet_jax.errors import InputError, require
from lrunet_jax.files import find_path
from lrunet_jax.models import abstract_variables, create_model
from lrunet_jax.programs import keep_compiled_programs
from lrunet_jax.runs.leaves import not_finite
from lrunet_jax.runs.restoring import require_same_leaves
from lrunet_jax.weights import published
from lrunet_jax.weights.converted import is_converted, open_converted, save_converted
from lrunet_jax.weights.stored_model import StoredModel, require_facts
from lrunet_jax.weights.torch_file import (
    TORCH_SUFFIXES,
    open_torch_file,
    save_torch_file,
)
from lrunet_jax.weights.trained_run import open_run


def load(path: str | os.PathLike, step: int | None = None) -> tuple[nn.Module, Any]:
    """A trained network and its variables.

    What is compiled from then on is kept, see `keep_compiled_programs`.

        model, variables = lrunet_jax.load("cifar10-lru14-ckpt-08934.t7")
        logits = model.apply(variables, images, train=False)

    Args:
      path: a PyTorch file, a directory that `lrunet_jax.convert` has written, a run's
        workdir or one of its checkpoints, or the name of a published checkpoint,
        which is downloaded if need be.
      step: the checkpoint to read, if `path` is a workdir; by default the best.

    Returns:
      The model, whose images are (B, H, W, channels) floats in [0, 1], and its
      variables: `params`, `batch_stats`, and `input_stats` if it normalises images.

    Raises:
      InputError: if there is no such network, or it can't be read.
    """
    keep_compiled_programs()
    stored = open_model(path, step)
    return stored.create_model(), jax.tree.map(jnp.asarray, stored.variables)


def open_model(
    path: str | os.PathLike, step: int | None = None, *, allow_nonfinite: bool = False
) -> StoredModel:
    """Opens a trained network with what is known about it.

    Args:
      path: as for `load`.
      step: as for `load`.
      allow_nonfinite: whether weights may be NaN or infinite.

    Raises:
      InputError: as `load`; for weights that are not finite too, of which it names the
        first.
      TroubleError: if the disk or memory is in trouble.
    """
    stored = _open(path, step)
    if not allow_nonfinite:
        for name in not_finite(stored.variables):
            raise InputError(f"{name} in {path} is not finite; weights must be")
    return stored


def _open(path: str | os.PathLike, step: int | None) -> StoredModel:
    place = find_path("path", path)
    is_directory, exists = place.is_dir(), place.exists()
    if is_directory and (place / "checkpoints").is_dir():
        return open_run(place, step)
    require(step is None, "step", step, f"left out, as {path} is no run's workdir")
    if is_directory:
        if place.parent.name == "checkpoints" and place.name.isdecimal():
            return open_run(place.parent.parent, int(place.name))
        if is_converted(place):
            return open_converted(place)
        raise InputError(
            f"path is {str(place)!r}; it must be a converted directory, a run's "
            "workdir or one of its checkpoints"
        )
    if exists:
        return open_torch_file(place)
    if str(path) in published.PUBLISHED:
        return open_torch_file(published.fetch(str(path)))
    raise InputError(
        f"path is {str(path)!r:.300}; it must be a PyTorch file, a converted "
        f"directory, a workdir, or one of {', '.join(published.PUBLISHED)}"
    )


def save_model(stored: StoredModel, path: str, *, module_prefix: bool = False) -> None:
    """Writes a network as a PyTorch file or as an Orbax directory.

    Args:
      stored: the network.
      path: with one of `TORCH_SUFFIXES`, a PyTorch file; else a directory.
      module_prefix: put `module.` before each name of the file, as DataParallel does.

    Raises:
      InputError: if the path exists already, or can't be written.
    """
    try:
        require_facts(stored)
    except ValueError as error:
        raise InputError(f"{stored.name} can't be written: {error}") from None
    target = find_path("target", path)
    is_there = target.exists() or os.path.islink(target)  # which may lead nowhere
    require(not is_there, "target", path, "a path that does not exist yet")
    if target.suffix in TORCH_SUFFIXES:
        save_torch_file(stored, target, module_prefix=module_prefix)
        return
    suffixes = ", ".join(TORCH_SUFFIXES)
    allowed = f"left out, unless the target is a PyTorch file ({suffixes})"
    require(not module_prefix, "module_prefix", module_prefix, allowed)
    save_converted(stored, target)


def weights_for(
    model: nn.Module, variables: dict[str, Any], path: str
) -> dict[str, Any]:
    """The weights that are stored in `path`, for training `model` on.

    Args:
      model: the network to be trained.
      variables: its `params` and `batch_stats`, which may be abstract.
      path: as for `load`.

    Returns:
      `params` and `batch_stats`, NumPy arrays; if the number of classes differs,
      without the last layer.

    Raises:
      InputError: if it can't be opened, or is a different network.
      TroubleError: if the disk or memory is in trouble.
    """
    stored = open_model(path)
    learned = {name: stored.variables[name] for name in ("params", "batch_stats")}
    arguments = stored.arguments | {"num_classes": model.num_classes}
    of_classes = abstract_variables(create_model(**arguments), stored.channels)
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    others = [
        name
        for name, module in of_classes["params"].items()
        if shapes(module) != shapes(learned["params"][name])
    ]
    without = lambda params: {n: params[n] for n in params if n not in others}
    learned["params"] = without(learned["params"])
    try:
        expected = variables | {"params": without(variables["params"])}
        require_same_leaves(expected, learned)
    except ValueError as error:
        raise InputError(
            f"init_from is {path!r}, which is another network: {error}"
        ) from None
    for name in others:
        print(f"init_from: {name} is of another number of classes, and fresh")
    return learned
