"""Trained networks on disk: PyTorch's files, converted directories, runs."""

import os
import pathlib
import shutil
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
from lrunet_jax.models import abstract_variables, create_model
from lrunet_jax.state_dict import from_state_dict, identify, to_state_dict

TORCH_SUFFIXES = (".pt", ".pth", ".t7")


class StoredModel(NamedTuple):
    """A trained network and what is known of it.

    Attributes:
      arguments: of `create_model`, `name` among them.
      channels: of its images.
      variables: `params` and `batch_stats`, of a run with moving averages these, and
        `input_stats` where images are normalised; NumPy arrays.
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
        fields = {key: value for key, value in self.arguments.items() if key != "name"}
        listed = ", ".join(f"{key}={value}" for key, value in fields.items())
        return f"{self.arguments['name']} ({listed})"


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
      variables: `params`, `batch_stats`, and `input_stats` if it normalises images.

    Raises:
      InputError: if there is no such network, or it can't be read.
    """
    stored = open_model(path, step)
    return stored.create_model(), jax.tree.map(jnp.asarray, stored.variables)


def open_model(path: str | os.PathLike, step: int | None = None) -> StoredModel:
    """As `load`, with what is known of the network; its arrays are NumPy's."""
    try:
        place = epath.Path(path).expanduser()
        is_directory, exists = place.is_dir(), place.exists()
    except Exception as error:  # gs:// without its library, or no path at all
        reason = in_one_line(error)
        raise InputError(f"path {str(path)!r:.300} can't be used: {reason}") from None
    if is_directory and (place / "checkpoints").is_dir():
        return _open_run(place.resolve(), step)
    require(step is None, "step", step, f"left out, as {path} is no run's workdir")
    if is_directory:
        place = place.resolve()
        if place.parent.name == "checkpoints" and place.name.isdecimal():
            return _open_run(place.parent.parent, int(place.name))
        return _open_converted(place)
    if exists:
        return _open_torch(pathlib.Path(place))
    if str(path) in published.PUBLISHED:
        return _open_torch(published.fetch(str(path)))
    raise InputError(
        f"path is {str(path)!r:.300}; it must be a PyTorch file, a converted "
        f"directory, a workdir, or one of {', '.join(published.PUBLISHED)}"
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
    target = pathlib.Path(path).expanduser()
    # A link that leads nowhere is there, too.
    require(
        not os.path.lexists(target), "target", path, "a path that does not exist yet"
    )
    is_file = target.suffix in TORCH_SUFFIXES
    require(
        is_file or not module_prefix,
        "module_prefix",
        module_prefix,
        f"left out, unless the target is a PyTorch file ({', '.join(TORCH_SUFFIXES)})",
    )
    if is_file:
        torch_format.write(target, _torch_tree(stored, module_prefix))
        return
    facts = stored._asdict()
    items = ocp.args.Composite(
        variables=ocp.args.StandardSave(facts.pop("variables")),
        model=ocp.args.JsonSave(facts),
    )
    try:
        with _converted_checkpointer() as checkpointer:
            checkpointer.save(target.resolve(), args=items)
    except Exception as error:  # Orbax has many names for a disk that is full
        for part in target.parent.glob(f"{target.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"{path} can't be written: {in_one_line(error)}") from None


def weights_for(
    model: nn.Module, variables: dict[str, Any], path: str
) -> dict[str, Any]:
    """`variables` of `model` with the numbers of the network in `path`.

    A last layer of another number of classes keeps its own.

    Raises:
      InputError: if it can't be opened, or is another network.
    """
    stored = open_model(path)
    learned = {name: stored.variables[name] for name in ("params", "batch_stats")}
    arguments = stored.arguments | {"num_classes": model.num_classes}
    of_classes = abstract_variables(create_model(**arguments), stored.channels)
    shapes = lambda tree: jax.tree.map(np.shape, tree)
    fresh = {
        name: variables["params"].get(name, {})
        for name, module in of_classes["params"].items()
        if shapes(module) != shapes(learned["params"][name])
    }
    learned["params"] = learned["params"] | fresh
    try:
        require_same_leaves(variables, learned)
    except ValueError as error:
        raise InputError(
            f"init_from is {path!r}, which is another network: {error}"
        ) from None
    for name in fresh:
        print(f"init_from: {name} is of another number of classes, and fresh")
    return jax.tree.map(jnp.asarray, learned)


def _torch_tree(stored, module_prefix):
    prefix = "module." if module_prefix else ""
    tensors = to_state_dict(stored.variables, stored.counters)
    return {
        "net": {f"{prefix}{name}": tensor for name, tensor in tensors.items()},
        # The original reads numbers here; 0 % is read back as unknown.
        "acc": round(100 * (stored.accuracy or 0.0), 10),
        "epoch": stored.epoch or 0,
    }


def _open_torch(path):
    content = torch_format.read_bytes(path)
    tree = torch_format.loads(content, path)
    name = published.find(content)
    of_name = [n for n in published.PUBLISHED if path.name == published.file_name(n)]
    if of_name and of_name != [name]:
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
            tensors, abstract_variables(create_model(**arguments), channels)
        )
    except InputError as error:
        raise InputError(f"{path} can't be converted: {error}") from None
    percent = _number(path, tree, "acc") or None  # 0 stands for what nobody knows
    epoch = _number(path, tree, "epoch") if percent else None
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
            only = ocp.args.Composite(model=ocp.args.JsonRestore())
            facts = checkpointer.restore(directory, args=only)["model"]
            stored = StoredModel(variables={}, **facts)
            _require_facts(stored)
            expected = abstract_variables(stored.create_model(), stored.channels)
            with ocp.StandardCheckpointer() as standard:
                found = standard.metadata(directory / "variables").item_metadata
            if "input_stats" in found.tree:
                stats = {"input_stats": _abstract_input_stats(stored.channels)}
                expected = expected | stats  # a copy: it is cached
            require_same_leaves(expected, found.tree)
            only = ocp.args.Composite(variables=ocp.args.StandardRestore())
            restored = checkpointer.restore(directory, args=only)
    except Exception as error:  # Orbax has many names for damage
        raise InputError(f"{directory} can't be read: {in_one_line(error)}") from None
    return stored._replace(variables=restored["variables"])


def _converted_checkpointer():
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _open_run(workdir, step):
    def arguments(config):
        return config["model"] | {"num_classes": NUM_CLASSES[config["dataset"]]}

    def describe(config):
        channels = IMAGE_SHAPES[config["dataset"]][2]
        learned = abstract_variables(create_model(**arguments(config)), channels)
        fields = {"epoch": jax.ShapeDtypeStruct((), np.int32)}
        if config["normalise"]:
            fields |= {"input_stats": _abstract_input_stats(channels)}
        return fields | ({"ema": learned} if config["ema_decay"] else learned)

    step, state, config, metrics = read_checkpoint(
        workdir / "checkpoints", step, describe
    )
    epochs = int(state.pop("epoch"))
    averages = state.pop("ema", {})  # if there are any, they are what counts
    stored = StoredModel(
        arguments=arguments(config),
        channels=IMAGE_SHAPES[config["dataset"]][2],
        variables=state | averages,
        counters=step,
        name=workdir.name,
        dataset=config["dataset"],
        accuracy=metrics.get("test_ema_accuracy" if averages else "test_accuracy"),
        epoch=epochs - 1 if epochs else None,  # the last complete one
    )
    try:
        _require_facts(stored)
    except ValueError as error:
        raise InputError(f"{workdir} can't be read: {in_one_line(error)}") from None
    return stored


def _require_facts(stored):
    """Raises a ValueError unless all that is known is of its type."""
    is_count = lambda value: type(value) is int and 0 <= value < 1 << 63
    counters, accuracy = stored.counters, stored.accuracy
    sound = {
        "arguments": isinstance(stored.arguments, dict),
        "channels": is_count(stored.channels),
        "counters": is_count(counters)
        or (isinstance(counters, dict) and all(map(is_count, counters.values()))),
        "name": isinstance(stored.name, str),
        "dataset": isinstance(stored.dataset, str),
        "accuracy": accuracy is None
        or (isinstance(accuracy, int | float) and 0 <= accuracy <= 1),
        "epoch": stored.epoch is None or is_count(stored.epoch),
    }
    for field, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{field} is {str(getattr(stored, field))!r:.90}")


def _abstract_input_stats(channels):
    per_channel = jax.ShapeDtypeStruct((channels,), np.float32)
    return {"mean": per_channel, "std": per_channel}


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
    """A number beside the state_dict, perhaps as a tensor; 0 if it is not there."""
    if key not in tree or "net" not in tree:
        return 0.0
    value = tree[key]
    if not isinstance(value, int | float | np.ndarray) or np.ndim(value) != 0:
        raise InputError(f"{path}: {key} is a {type(value).__name__}, and no number")
    if not abs(float(value)) < 1e9:
        raise InputError(f"{path}: {key} is {float(value)}; it must be less than 1e9")
    return float(value)
