"""The trained network in a PyTorch file."""

import sys
import warnings
from typing import Any

import numpy as np
from etils import epath

from lrunet_jax.data import dataset_info
from lrunet_jax.errors import InputError
from lrunet_jax.models import abstract_variables, create_model
from lrunet_jax.weights import published, torch_format
from lrunet_jax.weights.state_dict import from_state_dict, identify, to_state_dict
from lrunet_jax.weights.stored_model import StoredModel
from lrunet_jax.weights.torch_layout import find_tensors

TORCH_SUFFIXES = (".pt", ".pth", ".t7")


def open_torch_file(path: epath.Path) -> StoredModel:
    """Opens a file of `torch.save` that holds a state_dict, see `torch_layout`.

    A published file is recognised by its content. For any other the data set that it
    was trained on is unknown. Prints the words of `find_tensors`, if there are any, on
    standard error.

    Raises:
      InputError: if it can't be read, or is none of the networks.
    """
    content = torch_format.read_bytes(path)
    tree = torch_format.loads(content, path)
    name = published.find(content)
    of_name = [n for n in published.PUBLISHED if path.name == published.file_name(n)]
    if of_name and of_name != [name]:
        warnings.warn(
            f"{path} has the name of a published file, but another sha256",
            stacklevel=4,
        )
    try:
        tensors, place, found = find_tensors(tree)
        arguments, channels = identify(tensors)
        variables, counters = from_state_dict(
            tensors, abstract_variables(create_model(**arguments), channels)
        )
    except InputError as error:
        raise InputError(f"{path} can't be converted: {error}") from None
    # Beside the original's key they are what the original writes.
    beside = tree if place == ("net",) else {}
    percent = _number(path, beside, "acc", 100) or None  # 0 is what nobody knows
    epoch = _number(path, beside, "epoch", 1e9) if percent else None
    if found:
        print(f"{path.name}: {found}", file=sys.stderr)  # not among a command's figures
    info = dataset_info(published.PUBLISHED[name].dataset) if name else None
    return StoredModel(
        arguments=arguments,
        channels=channels,
        variables=variables,
        counters=counters,
        name=name or path.stem,
        dataset=info.name if info else "",
        accuracy=None if percent is None else round(percent / 100, 12),
        epoch=None if epoch is None else int(epoch),
        class_names=info.class_names if info else (),
        image_size=info.image_shape[:2] if info else (),
    )


def save_torch_file(
    stored: StoredModel, path: epath.Path, *, module_prefix: bool = False
) -> None:
    """Writes a file in the original's layout.

    That is `{'net': state_dict, 'acc': percent, 'epoch': epoch}`.

    Args:
      stored: the network.
      path: of the file.
      module_prefix: put `module.` before each name, as DataParallel does.

    Raises:
      InputError: if it can't be written, or the network normalises its images.
    """
    prefix = "module." if module_prefix else ""
    tensors = to_state_dict(stored.variables, stored.counters)
    tree = {
        "net": {f"{prefix}{name}": tensor for name, tensor in tensors.items()},
        # The original reads numbers here; 0 % is read back as unknown.
        "acc": round(100 * (stored.accuracy or 0.0), 10),
        "epoch": stored.epoch or 0,
    }
    torch_format.write(path, tree)


def _number(path: epath.Path, tree: dict[Any, Any], key: str, most: float) -> float:
    """A number beside the state_dict, perhaps as a tensor; 0 if it is not there."""
    value = tree.get(key)
    if value is None:
        return 0.0
    if not isinstance(value, int | float | np.ndarray) or np.ndim(value) != 0:
        raise InputError(f"{path}: {key} is a {type(value).__name__}, and no number")
    if not 0 <= float(value) <= most:
        raise InputError(
            f"{path}: {key} is {float(value)}; it must be in [0, {most:g}]"
        )
    return float(value)
