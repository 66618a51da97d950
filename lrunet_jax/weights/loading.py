"""Trained networks, opened from whatever holds them, and written again."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from lrunet_jax.errors import InputError, require
from lrunet_jax.files import find_path
from lrunet_jax.models import classifier, stem
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
    model: nn.Module, variables: dict[str, Any], path: str, *, normalise: bool
) -> dict[str, Any]:
    """The weights that are stored in `path`, for training `model` on.

    What is not taken as it is stored, is said in a line.

    Args:
      model: the network to be trained.
      variables: its `params` and `batch_stats`, which may be abstract.
      path: as for `load`.
      normalise: whether `model` is to be trained on normalised images.

    Returns:
      `params` and `batch_stats`, NumPy arrays; if the number of classes differs,
      without the last layer. Where one is for grey images and the other one is not,
      the first convolution is summed over the channels, or spread evenly: unless
      images are normalised, a grey one has the same logits as one channel or three.

    Raises:
      InputError: if it can't be opened, or is a different network.
      TroubleError: if the disk or memory is in trouble.
    """
    stored = open_model(path)
    learned = {name: stored.variables[name] for name in ("params", "batch_stats")}
    theirs, said = stored.create_model(), []
    same_classes = theirs.num_classes == model.num_classes
    others = [] if same_classes else classifier(theirs, stored.channels)
    said += [f"{name} is of another number of classes, and fresh" for name in others]
    without = lambda params: {n: params[n] for n in params if n not in others}
    expected = variables | {"params": without(variables["params"])}
    params, place = without(learned["params"]), stem(theirs, stored.channels)
    learned["params"], fitted = _fit_stem(params, expected["params"], *place)
    said += fitted
    try:
        require_same_leaves(expected, learned)
    except ValueError as error:
        raise InputError(
            f"init_from is {path!r}, which is another network: {error}"
        ) from None
    normalised = bool(stored.variables.get("input_stats"))
    if normalised and not normalise:
        said.append(f"{path} was trained on normalised images, and this run's are not")
    if normalise and not normalised:
        said.append(f"{path} was not trained on normalised images, and this run's are")
    for line in said:
        print(f"init_from: {line}")
    return learned


def _fit_stem(params, wanted, path, axis):
    """Makes the first convolution one of grey images or of colour, as is wanted.

    Args:
      params: as they are stored.
      wanted: the same with the shapes that are wanted, or those of another network.
      path: of the first convolution's kernel.
      axis: of the kernel, the images' channels.

    Returns:
      The params, and lines about what has changed.
    """
    kernels = traverse_util.flatten_dict(params)
    kernel, like = kernels[path], traverse_util.flatten_dict(wanted).get(path)
    here, count = kernel.shape[axis], like.shape[axis] if np.ndim(like) > axis else 0
    if here > 1 and count == 1:
        how = f"the first convolution is of {here} channels, and summed to 1"
        kernel = kernel.sum(axis, keepdims=True)
    elif here == 1 and count > 1:
        how = f"the first convolution is of 1 channel, and spread over {count}"
        kernel = np.repeat(kernel / count, count, axis)
    else:
        return params, []
    return traverse_util.unflatten_dict(kernels | {path: kernel}), [how]
