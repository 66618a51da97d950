"""Names and layouts of variables in PyTorch's `state_dict`, and back."""

import heapq
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lrunet_jax.errors import InputError
from lrunet_jax.models import create_model
from lrunet_jax.models.shufflenet import PLANES
from lrunet_jax.models.shufflenet_v2 import CHANNELS

Tensors = Mapping[str, np.ndarray]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# PyTorch's axes among Flax's: HWIO -> OIHW, (in, out) -> (out, in).
_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_COUNTER = "num_batches_tracked"  # of every norm; nothing depends on it
_FLOATS = ("bfloat16", "float16", "float32", "float64")


class Place(NamedTuple):
    """The place of a tensor among the variables.

    Attributes:
      path: collection, modules and leaf.
      iteration: of a reuse block's stacked norms: the index; -1 of other variables.
    """

    path: tuple[str, ...]
    iteration: int


def name_map(variables: Mapping[str, Any]) -> dict[str, Place]:
    """The place of every variable, by its name in PyTorch.

    The names are the original's: `features_0_1/scale` is `features.0.1.weight`, and
    `stage1/iterations/dw_bn_list/mean` of shape (N, C) is N tensors, of which
    `stage1.dw_bn_list.I.running_mean` is one.
    """
    places = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, *modules, name = path = tuple(key.key for key in key_path)
        dotted = [re.sub(r"_(\d+)", r".\1", module) for module in modules]
        if "iterations" not in dotted:
            places[".".join([*dotted, _LEAVES[name]])] = Place(path, -1)
            continue
        dotted.remove("iterations")
        for i in range(leaf.shape[0]):
            places[".".join([*dotted, str(i), _LEAVES[name]])] = Place(path, i)
    return {name: places[name] for name in sorted(places, key=_natural)}


def to_state_dict(
    variables: Mapping[str, Any], counters: Mapping[str, int] | int
) -> dict[str, np.ndarray]:
    """The variables as PyTorch names and lays them out.

    Args:
      variables: `params` and `batch_stats`.
      counters: `num_batches_tracked` by norm, 0 where it is missing, or one for all.

    Raises:
      InputError: for a network that normalises its images, which the original's
        classes do not.
    """
    if variables.keys() - {"params", "batch_stats"}:
        raise InputError(
            "the network normalises its images, for which PyTorch's classes have no "
            "place; train with normalise=False to convert"
        )
    tensors = {}
    for name, place in name_map(variables).items():
        tensors[name] = _tensor(variables, place)
        norm, _, leaf = name.rpartition(".")
        if leaf == "running_var":
            count = counters if isinstance(counters, int) else counters.get(norm, 0)
            tensors[f"{norm}.{_COUNTER}"] = np.array(count, np.int64)
    return tensors


def from_state_dict(
    tensors: Tensors, variables: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, int]]:
    """The variables in a state_dict, and its `num_batches_tracked` by norm.

    Args:
      tensors: by PyTorch's names.
      variables: arrays or abstract ones, whose names and shapes are expected.

    Floats of other widths are cast to float32.

    Raises:
      InputError: unless tensors and variables match one to one, in shape too; it names
        what does not, on both sides. Also for a number that float32 can't hold.
    """
    places = name_map(variables)
    expected = {name: _torch_shape(variables, place) for name, place in places.items()}
    counters, weights = {}, {}
    for name, tensor in tensors.items():
        norm, _, leaf = name.rpartition(".")
        is_counter = leaf == _COUNTER and f"{norm}.running_var" in places
        if is_counter and tensor.shape == ():
            # A float where all tensors of a network were cast; in float16 up to 65,504.
            counters[norm] = int(tensor) if np.isfinite(tensor) else 0
        else:
            weights[name] = tensor
    complaints = {
        "the file lacks": places.keys() - weights.keys(),
        "the model has no place for": weights.keys() - places.keys(),
        "of another shape or type": [
            f"{name} ({_describe(weights[name])}, expected float32{list(shape)})"
            for name, shape in expected.items()
            if name in weights
            and not (is_float(weights[name]) and weights[name].shape == shape)
        ],
    }
    if found := [
        f"{what} {some(names)}" for what, names in complaints.items() if names
    ]:
        raise InputError("; ".join(found))
    filled = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), variables)
    for name, place in places.items():
        target = _tensor(filled, place)
        with np.errstate(over="ignore"):
            target[...] = weights[name]
        if np.any(np.isinf(target) & np.isfinite(weights[name])):
            raise InputError(f"a number in {name!r:.90} is too large for float32")
    return filled, counters


def identify(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """The model that a state_dict belongs to, found from its names and shapes.

    Returns:
      Arguments of `create_model`, and the number of channels of its images.

    Raises:
      InputError: if it is none of the five.
    """
    if empty := [name for name, tensor in tensors.items() if not tensor.size]:
        raise InputError(f"there are tensors without a value: {some(empty)}")
    for mark, (name, stem, find_arguments) in _FINDERS.items():
        if mark not in tensors:
            continue
        try:
            arguments = {"name": name, **find_arguments(tensors)}
            create_model(**arguments)
            channels = tensors[stem].shape[1]
        except (LookupError, ArithmeticError, TypeError, ValueError) as error:
            raise InputError(
                f"{mark} is of a {name}, but the other tensors are not: {error!r}"
            ) from None
        return arguments, channels
    raise InputError(f"no tensor is of one of the five networks: {some(tensors)}")


def _tensor(variables, place):
    """A variable as PyTorch lays it out; a view, if it is a NumPy array."""
    array = np.asarray(_leaf(variables, place))
    if place.iteration >= 0:
        array = array[place.iteration]
    return array.transpose(_AXES[array.ndim])


def _torch_shape(variables, place):
    """The shape of a variable, which may be abstract, as PyTorch lays it out."""
    shape = _leaf(variables, place).shape
    if place.iteration >= 0:
        shape = shape[1:]
    return tuple(shape[axis] for axis in _AXES[len(shape)])


def _leaf(variables, place):
    for key in place.path:
        variables = variables[key]
    return variables


def _describe(tensor):
    return f"{tensor.dtype}{list(tensor.shape)}"


def is_float(tensor: np.ndarray) -> bool:
    """Tells whether a tensor is of floats, of any width."""
    return str(tensor.dtype) in _FLOATS


def some(names: Iterable[str]) -> str:
    """The first three of names in quotes, and how many more there are."""
    cut = [name[:90] for name in names]
    more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    return ", ".join(map(repr, heapq.nsmallest(3, cut, key=_natural))) + more


def _natural(name):
    """Sorts numbers by their value: `features.2` before `features.10`."""
    return [(part.isdecimal() and len(part), part) for part in name.split(".")]


# --- A model's arguments from the shapes of its tensors ---------------------------


def _lrunet(tensors):
    numbers = itertools.count()
    reuse = next(i for i in numbers if f"stage1.dw_bn_list.{i}.weight" not in tensors)
    if 32 * reuse > len(tensors):  # two norms in each of four blocks
        raise ValueError(f"stage1 has norms of {reuse} iterations, the others have not")
    return {
        "num_classes": len(tensors["classifier.4.weight"]),
        "width_mult": len(tensors["stage1.pw.weight"]) / 64,
        "layer_reuse": reuse,
    }


def _mobilenet(tensors):
    blocks = {1: 64, 2: 128, 4: 256, 6: 512, 12: 1024}
    sizes = {
        base: len(tensors[f"features.{number}.conv2.weight"])
        for number, base in blocks.items()
    }
    return {
        "num_classes": len(tensors["classifier.1.weight"]),
        "width_mult": _width(sizes | {32: len(tensors["features.0.0.weight"])}),
    }


def _mobilenet_v2(tensors):
    blocks = {2: 24, 4: 32, 7: 64, 11: 96, 14: 160, 17: 320}
    sizes = {
        base: len(tensors[f"features.{number}.conv.6.weight"])
        for number, base in blocks.items()
    }
    sizes[16] = len(tensors["features.1.conv.3.weight"])
    return {
        "num_classes": len(tensors["classifier.1.weight"]),
        "width_mult": _width(sizes),
    }


def _shufflenet(tensors):
    stem = len(tensors["conv1.weight"])
    groups = stem // tensors["layer1.0.conv1.weight"].shape[1]
    sizes = {24: stem}
    for stage, base in enumerate(PLANES[groups], start=1):
        sizes[base] = len(tensors[f"layer{stage}.1.conv3.weight"])
    return {
        "num_classes": len(tensors["linear.weight"]),
        "width_mult": _width(sizes),
        "groups": groups,
    }


def _shufflenet_v2(tensors):
    stages = [2 * len(tensors[f"layer{i}.0.conv5.weight"]) for i in (1, 2, 3)]
    channels = (*stages, len(tensors["conv2.weight"]))
    widths: dict[tuple[int, ...], float] = {row: w for w, row in CHANNELS.items()}
    return {
        "num_classes": len(tensors["linear.weight"]),
        "width_mult": widths[channels],
    }


def _width(sizes: Mapping[int, int]) -> float:
    """The shortest decimal w with int(base * w) == size for all of `sizes`."""
    low = max(size / base for base, size in sizes.items())
    for digits in range(17):
        width = math.ceil(low * 10**digits) / 10**digits
        if all(int(base * width) == size for base, size in sizes.items()):
            return width
    raise ValueError(f"no width makes the channels {sizes}")


# A tensor that only this model has, the model, its first convolution, its finder.
_FINDERS: dict[str, tuple[str, str, Callable[[Tensors], dict[str, Any]]]] = {
    "stage1.dw.weight": ("lrunet", "features.0.weight", _lrunet),
    "features.1.conv1.weight": ("mobilenet", "features.0.0.weight", _mobilenet),
    "features.1.conv.0.weight": ("mobilenet_v2", "features.0.0.weight", _mobilenet_v2),
    "layer1.0.conv5.weight": ("shufflenet_v2", "conv1.weight", _shufflenet_v2),
    "layer1.0.conv3.weight": ("shufflenet", "conv1.weight", _shufflenet),
}

MARKS = tuple(_FINDERS)  # tensors, of which each network has one
