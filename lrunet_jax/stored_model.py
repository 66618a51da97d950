"""Trained networks on disk: PyTorch's files, converted directories, runs."""

import functools
import hashlib
import os
import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn

from lrunet_jax import published, torch_format
from lrunet_jax.checkpoint import read_checkpoint, require_same_leaves
from lrunet_jax.data import IMAGE_SHAPES, NUM_CLASSES
from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.models import create_model
from lrunet_jax.state_dict import from_state_dict, identify, to_state_dict

TORCH_SUFFIXES = (".pt", ".pth", ".t7")


class StoredModel(NamedTuple):
    """A trained network and what is known of it.

    Attributes:
      arguments: of `create_model`, `name` among them.
      channels: of its images.
      variables: `params` and `batch_stats`, NumPy arrays.
      counters: PyTorch's `num_batches_tracked` by norm, or one for all.
      name: of a published checkpoint, else of the file or directory.
      dataset: that it was trained on.
      accuracy: on the test set, a fraction, as recorded; None if it is not.
      epoch: that it comes from, counted from 0; None if it is not recorded.
    """

    arguments: dict[str, Any]
    channels: int
    variables: Any
    counters: dict[str, int] | int
    name: str
    dataset: str
    accuracy: float | None
    epoch: int | None

    def create_model(self) -> nn.Module:
        """The network, without its variables."""
        return create_model(**self.arguments)

    def describe(self) -> str:
        """The model's name and arguments."""
        name, *fields = (
            f"{field}={value}" if field != "name" else value
            for field, value in self.arguments.items()
        )
        return f"{name} ({', '.join(fields)})"


def load(path: str | os.PathLike, step: int | None = None) -> tuple[nn.Module, Any]:
    """A trained network and its variables.

        model, variables = lrunet_jax.load("cifar10-lru14-ckpt-08934.t7")
        logits = model.apply(variables, images, train=False)

    Args:
      path: a PyTorch file, a directory that `lrunet_jax.convert` has written, a run's
        workdir or one of its checkpoints, or the name of a published checkpoint,
        which is downloaded if need be.
      step: of a workdir, which of its checkpoints; by default the best.

    Returns:
      The model, whose images are (B, H, W, channels) floats in [0, 1], and its
      variables: `params` and `batch_stats`.

    Raises:
      InputError: if there is no such network, or it can't be read.
    """
    stored = open_model(path, step)
    return stored.create_model(), jax.tree.map(jnp.asarray, stored.variables)


def open_model(path: str | os.PathLike, step: int | None = None) -> StoredModel:
    """As `load`, with what is known of the network; its arrays are NumPy's."""
    directory = epath.Path(path).expanduser()
    if directory.is_dir():
        directory = directory.resolve()
        if (directory / "checkpoints").is_dir():
            return _open_run(directory, step)
        if directory.parent.name == "checkpoints" and directory.name.isdecimal():
            _require_no_step(step, path)
            return _open_run(directory.parent.parent, int(directory.name))
        _require_no_step(step, path)
        return _open_converted(directory)
    _require_no_step(step, path)
    if directory.exists():
        return _open_torch(pathlib.Path(directory))
    if str(path) in published.PUBLISHED:
        return _open_torch(published.fetch(str(path)))
    raise InputError(
        f"path is {str(path)!r}; it must be a PyTorch file, a converted directory, a "
        f"workdir, or one of {', '.join(published.PUBLISHED)}"
    )


def save_model(stored: StoredModel, path: str, *, module_prefix: bool = False) -> None:
    """Writes a network as a PyTorch file or as an Orbax directory.

    Args:
      stored: the network.
      path: with one of `TORCH_SUFFIXES`, a file in the original's layout:
        `{'net': state_dict, 'acc': percent, 'epoch': epoch}`; else a directory.
      module_prefix: put `module.` before each name of the file, as DataParallel does.

    Raises:
      InputError: if the path exists already, or can't be written.
    """
    target = epath.Path(path).expanduser()
    require(not target.exists(), "target", path, "a path that does not exist yet")
    is_file = target.suffix in TORCH_SUFFIXES
    require(
        is_file or not module_prefix,
        "module_prefix",
        module_prefix,
        f"left out, unless the target is a PyTorch file ({', '.join(TORCH_SUFFIXES)})",
    )
    if is_file:
        prefix = "module." if module_prefix else ""
        tensors = to_state_dict(stored.variables, stored.counters)
        tree = {
            "net": {f"{prefix}{name}": tensor for name, tensor in tensors.items()},
            "acc": round(100 * (stored.accuracy or 0.0), 10),
            "epoch": stored.epoch or 0,
        }
        torch_format.write(target, tree)
        return
    facts = stored._asdict()
    variables = facts.pop("variables")
    try:
        with _converted_checkpointer() as checkpointer:
            checkpointer.save(
                target.resolve(),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    model=ocp.args.JsonSave(facts),
                ),
            )
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from None


def _open_torch(path):
    tree = torch_format.read(path)
    name = published.find(hashlib.sha256(path.read_bytes()).hexdigest())
    if not name and path.name in map(published.file_name, published.PUBLISHED):
        warnings.warn(
            f"{path} has the name of a published file, but another sha256",
            stacklevel=4,
        )
    tree = tree if isinstance(tree, dict) else {}
    tensors = tree.get("net", tree)
    if (
        not tensors
        or not isinstance(tensors, dict)
        or not all(
            isinstance(key, str) and isinstance(value, np.ndarray)
            for key, value in tensors.items()
        )
    ):
        raise InputError(
            f"{path} holds no state_dict: neither tensors by name, nor a dict of which "
            "'net' is that"
        )
    try:
        arguments, channels = identify(tensors)
        variables, counters = from_state_dict(
            tensors, _abstract_variables(create_model(**arguments), channels)
        )
    except InputError as error:
        raise InputError(f"{path} can't be converted: {error}") from None
    percent = _number(path, tree, "acc")
    epoch = _number(path, tree, "epoch")
    return StoredModel(
        arguments=arguments,
        channels=channels,
        variables=variables,
        counters=counters,
        name=name or path.stem,
        dataset=_dataset(arguments["num_classes"], channels),
        accuracy=None if percent is None else round(percent / 100, 12),
        epoch=None if epoch is None else int(epoch),
    )


def _open_converted(directory):
    if not (directory / "model").exists():
        raise InputError(
            f"path is {str(directory)!r}; it must be a converted directory, a run's "
            "workdir or one of its checkpoints"
        )
    try:
        with _converted_checkpointer() as checkpointer:
            items = ocp.args.Composite(
                variables=ocp.args.StandardRestore(), model=ocp.args.JsonRestore()
            )
            restored = checkpointer.restore(directory, args=items)
        stored = StoredModel(variables=restored["variables"], **restored["model"])
    except Exception as error:  # Orbax has many names for damage
        raise _damaged(directory, error) from None
    return _checked(stored, directory)


def _converted_checkpointer():
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _open_run(workdir, step):
    step, state, config, metrics = read_checkpoint(workdir / "checkpoints", step)
    arguments = config["model"] | {"num_classes": NUM_CLASSES[config["dataset"]]}
    stored = StoredModel(
        arguments=arguments,
        channels=IMAGE_SHAPES[config["dataset"]][2],
        variables={name: state[name] for name in ("params", "batch_stats")},
        counters=step,
        name=workdir.name,
        dataset=config["dataset"],
        accuracy=metrics.get("test_accuracy"),
        epoch=max(int(state["epoch"]) - 1, 0),  # of the last complete one
    )
    return _checked(stored, workdir)


def _checked(stored, directory):
    """`stored`, if its variables are those of its model."""
    try:
        expected = _abstract_variables(stored.create_model(), stored.channels)
        require_same_leaves(expected, stored.variables)
    except ValueError as error:
        raise _damaged(directory, error) from None
    return stored


def _damaged(directory, error):
    return InputError(f"{directory} can't be read: {in_one_line(error)}")


@functools.lru_cache(maxsize=32)  # of what takes most of the time of opening a file
def _abstract_variables(model, channels):
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {name: variables[name] for name in ("params", "batch_stats")}


def _dataset(classes, channels):
    """Of the original's three, the one with so many classes and channels."""
    return next(
        (
            name
            for name in ("cifar10", "cifar100", "fashion_mnist")
            if (NUM_CLASSES[name], IMAGE_SHAPES[name][2]) == (classes, channels)
        ),
        "",
    )


def _number(path, tree, key):
    """A number beside the state_dict, perhaps as a tensor; None if it is not there."""
    if key not in tree or "net" not in tree:
        return None
    value = tree[key]
    is_number = isinstance(value, int | float | np.ndarray) and np.ndim(value) == 0
    if not is_number or not abs(value) < 1e9:
        raise InputError(f"{path}: {key} is {value!r:.80}; it must be a number")
    return float(value)


def _require_no_step(step, path):
    require(step is None, "step", step, f"left out, as {path} is no run's workdir")
