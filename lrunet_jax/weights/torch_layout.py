"""The state_dict in what `torch.save` wrote, which people store in many ways.

Around it may be dicts, as in a checkpoint of a training loop or of Lightning; before
its names may stand what DataParallel, `torch.compile` and other wrappers put there.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lrunet_jax.errors import InputError
from lrunet_jax.weights.state_dict import MARKS, some

_WRAPPERS = re.compile(r"((module|_orig_mod|model|net)\.)*")  # before a tensor's name
_AVERAGED = re.compile(r"ema|swa|aver", re.IGNORECASE)  # in a key: not the raw weights
_USUAL = ["net", "model", "state_dict", "model_state_dict"]  # keys of the raw weights

Place = tuple[str, ...]  # the keys that lead to a dict

# What needs no word: a state_dict alone, and the original's files.
_PLAIN: list[tuple[Place, str]] = [((), ""), (("net",), ""), (("net",), "module.")]


def find_tensors(tree: Any) -> tuple[dict[str, np.ndarray], str]:
    """The tensors of the network in `tree`, which `torch_format.read` gives.

    Of several networks the raw one is taken, not its moving average. Floats of other
    widths are cast to float32.

    Returns:
      The tensors by the original's names, and in words what was found, other networks
      that are there among it; no words for the layout of the original and for a bare
      state_dict.

    Raises:
      InputError: if no dict holds tensors of one of the five networks, or a number is
        too large for float32.
    """
    dicts = dict(_dicts(tree, ()))
    prefixes = {place: _prefix(found) for place, found in dicts.items()}
    networks = [place for place, prefix in prefixes.items() if prefix is not None]
    if not networks:
        raise InputError(f"it holds none of the five networks; {_contents(dicts)}")
    place, *others = sorted(networks, key=_preference)
    prefix = prefixes[place] or ""
    arrays = _arrays(dicts[place])
    of_network = [k for k in arrays if isinstance(k, str) and k.startswith(prefix)]
    tensors = {key.removeprefix(prefix): arrays[key] for key in of_network}
    strange = arrays.keys() - set(of_network)
    wide = {str(t.dtype) for t in tensors.values() if _is_other_float(t)}
    tensors = {name: _as_float32(name, tensor) for name, tensor in tensors.items()}
    words = []
    if (place, prefix) not in _PLAIN:
        words += [_named(place) if place else "a state_dict"]
        words += [f"names after {prefix!r}"] if prefix else []
    words += [f"{', '.join(sorted(wide))} cast to float32"] if wide else []
    left = [*map(str, strange), *map(_named, others)]
    return tensors, ", ".join(words) + (f"; left out {some(left)}" if left else "")


def _dicts(
    tree: Any, place: Place, seen: set[int] | None = None
) -> Iterator[tuple[Place, dict[Any, Any]]]:
    """The dicts in dicts, the outer ones first, each once."""
    seen = set() if seen is None else seen
    if not isinstance(tree, dict) or id(tree) in seen or len(place) > 3:
        return
    seen.add(id(tree))
    yield place, tree
    for key, value in tree.items():
        yield from _dicts(value, (*place, str(key)), seen)


def _prefix(found: dict[Any, Any]) -> str | None:
    """What stands before a network's names; None if there is no network."""
    names = [key for key in _arrays(found) if isinstance(key, str)]
    for mark in MARKS:
        for name in names:
            if name.endswith(mark) and _WRAPPERS.fullmatch(name.removesuffix(mark)):
                return name.removesuffix(mark)
    return None


def _preference(place: Place) -> tuple[bool, int]:
    averaged = any(map(_AVERAGED.search, place))
    key = place[0] if place else _USUAL[0]
    return averaged, _USUAL.index(key) if key in _USUAL else len(_USUAL)


def _arrays(found: dict[Any, Any]) -> dict[Any, np.ndarray]:
    return {k: value for k, value in found.items() if isinstance(value, np.ndarray)}


def _is_other_float(tensor: np.ndarray) -> bool:
    return str(tensor.dtype) in ("float16", "bfloat16", "float64")


def _as_float32(name: str, tensor: np.ndarray) -> np.ndarray:
    if not _is_other_float(tensor):
        return tensor
    with np.errstate(over="ignore"):
        cast = tensor.astype(np.float32)
    if np.any(np.isinf(cast) & np.isfinite(tensor)):
        raise InputError(f"a number in {name!r:.90} is too large for float32")
    return cast


def _named(place: Place) -> str:
    return f"{'.'.join(place):.90}"


def _contents(dicts: dict[Place, dict[Any, Any]]) -> str:
    """The keys that are there, and the names of the largest dict of tensors."""
    keys = some(map(str, dicts.get((), {})))
    arrays = {
        place: list(map(str, _arrays(found))) for place, found in dicts.items() if place
    }
    largest = max(arrays, key=lambda place: len(arrays[place]), default=())
    if not keys:
        return "it holds nothing by name"
    inside = f", and in {_named(largest)!r} are {some(arrays[largest])}"
    return f"its keys are {keys}" + (inside if largest and arrays[largest] else "")
