"""The config of a run, as it is stored, and what changed since."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import write_whole
from lrunet_jax.runs.earlier import translate

# Fields of the model that parameters do not depend on.
_FREE_MODEL_FIELDS = ("model.drop",)
# In all of a run.
_SAME = ("dataset", "freeze", "normalise", "validation", "split_seed")


def write_config(workdir: epath.Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json`, from plain containers."""
    write_whole(workdir / "config.json", json.dumps(config, indent=2) + "\n")


def read_config(workdir: epath.Path) -> dict[str, Any]:
    """Reads `config.json`.

    Raises:
      OSError: if it is not there, or the disk can't be read.
      InputError: if it holds no JSON object.
    """
    text = (workdir / "config.json").read_bytes()
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError(f"a {type(config).__name__}")
    except (ValueError, TypeError, RecursionError) as error:  # JSON has many ways
        raise InputError(
            f"config.json in {workdir} can't be read ({in_one_line(error)}); it must "
            "be the JSON object that train.py wrote"
        ) from None
    return translate(config)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple]:
    """The fields that differ, with their old and new values (None: not there)."""
    before, after = dict(flatten(old)), dict(flatten(new))
    fields = sorted(before | after)
    pairs = {field: (before.get(field), after.get(field)) for field in fields}
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def require_same_run(changed: Mapping[str, tuple], workdir: str) -> None:
    """Raises an InputError if what a run's arrays depend on is among the `changes`."""
    for field, (old, new) in changed.items():
        of_model = field.startswith("model.") and field not in _FREE_MODEL_FIELDS
        of_state = field == "ema_decay" and bool(old) != bool(new)
        if of_model or of_state or field in _SAME:
            raise InputError(
                f"{field} is {new!r}, but the run in {workdir} has {old!r}; give "
                "another --workdir, or the same value to go on"
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, tuples as lists: as JSON gives them back."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
