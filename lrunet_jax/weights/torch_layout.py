"""The state_dict in what `torch.save` wrote, which people store in many ways.

Around it may be dicts, as in a checkpoint of a training loop or of Lightning; before
its names may stand what DataParallel, `torch.compile` and other wrappers put there.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lrunet_jax.errors import InputError
from lrunet_jax.weights.state_dict import MARKS, is_float, some

_WRAPPERS = re.compile(r"((module|_orig_mod|model|net)\.)*")  # before a tensor's name
_USUAL = ["net", "model", "state_dict", "model_state_dict"]  # keys of the raw weights
# In the keys of others, as words of their own: `model_ema`, `emaModel`, `EMA`.
_NOT_RAW = re.compile(
    "(^|_)((model)?ema(model)?|swa|avg|averaged?|mean|moving|polyak|shadow|target"
    "|teacher|init|initial)(_|$)"
)

Place = tuple[str, ...]  # the keys that lead to a dict

# What needs no word: a state_dict alone, and the original's files.
_PLAIN: list[tuple[Place, str]] = [((), ""), (("net",), ""), (("net",), "module.")]


def find_tensors(tree: Any) -> tuple[dict[str, np.ndarray], Place, str]:
    """The tensors of the network in `tree`, which `torch_format.read` gives.

    Of several networks the raw one is taken, not its moving average.

    Returns:
      The tensors by the original's names; the keys that lead to them; and in words
      where they were, which other networks and tensors are there, and which floats are
      not float32; no words where a bare state_dict, or the layout of the original,
      holds nothing of that.

    Raises:
      InputError: if no dict holds tensors of one of the five networks.
    """
    dicts = dict(_dicts(tree))
    prefixes = {place: _prefix(found) for place, found in dicts.items()}
    networks = [place for place, prefix in prefixes.items() if prefix is not None]
    if not networks:
        raise InputError(f"it holds none of the five networks; {_contents(dicts)}")
    place, *others = sorted(networks, key=_preference)
    prefix = prefixes[place] or ""
    arrays = _arrays(dicts[place])
    of_network = [k for k in arrays if isinstance(k, str) and k.startswith(prefix)]
    tensors = {key.removeprefix(prefix): arrays[key] for key in of_network}
    left = [*map(str, arrays.keys() - set(of_network)), *map(".".join, others)]
    cast = {str(t.dtype) for t in tensors.values() if is_float(t)} - {"float32"}
    words = []
    if left or cast or (place, prefix) not in _PLAIN:
        words += [_in_print(".".join(place)) or "a state_dict"]
    words += [f"names after {prefix!r}"] if prefix and words else []
    words += [f"{', '.join(sorted(cast))} cast to float32"] if cast else []
    found = ", ".join(words) + (f"; left out {some(left)}" if left else "")
    return tensors, place, found


def _dicts(tree: Any) -> Iterator[tuple[Place, dict[Any, Any]]]:
    """The dicts in dicts, the outer ones first, each once, down to three keys."""
    level: list[tuple[Place, Any]] = [((), tree)]
    seen: set[int] = set()
    for _ in range(4):
        below: list[tuple[Place, Any]] = []
        for place, value in level:
            if isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                yield place, value
                below += [((*place, str(key)), inner) for key, inner in value.items()]
        level = below


def _prefix(found: dict[Any, Any]) -> str | None:
    """The prefix of the names of a network's tensors; None if there is no network."""
    names = [key for key in _arrays(found) if isinstance(key, str)]
    for mark in MARKS:
        for name in names:
            if name.endswith(mark) and _WRAPPERS.fullmatch(name.removesuffix(mark)):
                return name.removesuffix(mark)
    return None


def _preference(place: Place) -> tuple[bool, int]:
    other = any(_NOT_RAW.search(_snake_case(key)) for key in place)
    key = place[-1] if place else _USUAL[0]
    return other, _USUAL.index(key) if key in _USUAL else len(_USUAL)


def _snake_case(key: str) -> str:
    between = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z]+"
    return re.sub(between, "_", key).lower()


def _arrays(found: dict[Any, Any]) -> dict[Any, np.ndarray]:
    return {k: value for k, value in found.items() if isinstance(value, np.ndarray)}


def _in_print(text: str) -> str:
    """The text without line ends and other control characters, cut."""
    return repr(text[:90])[1:-1]


def _contents(dicts: dict[Place, dict[Any, Any]]) -> str:
    """The keys that are there, and the names of the largest dict of tensors."""
    if not dicts.get(()):
        return "it holds nothing by name"
    arrays = {
        place: list(map(str, _arrays(found))) for place, found in dicts.items() if place
    }
    largest = max(arrays, key=lambda place: len(arrays[place]), default=())
    keys = f"its keys are {some(map(str, dicts[()]))}"
    if not largest or not arrays[largest]:
        return keys
    return f"{keys}, and in {_in_print('.'.join(largest))} are {some(arrays[largest])}"
