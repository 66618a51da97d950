"""The facts about a run's data, as they are stored."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from lrunet_jax.data import DatasetInfo, dataset_info
from lrunet_jax.data.info import MAX_SIDE
from lrunet_jax.errors import InputError
from lrunet_jax.files import write_whole


def facts_of(info: DatasetInfo) -> dict[str, Any]:
    """The facts as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(info)))


def info_of(facts: Mapping[str, Any], dataset: str) -> DatasetInfo:
    """The facts that `facts_of` has made a mapping of.

    Args:
      facts: empty for a run from before they were kept, which is of a known set.
      dataset: the name of the set in the run's config.

    Raises:
      InputError: for a set that is not known.
      ValueError: if they are not as `facts_of` makes them.
    """
    if not facts:
        return dataset_info(dataset)
    expected = facts_of(dataset_info("digits"))
    kind = lambda value: type(value).__name__
    for name in expected.keys() | facts:
        if kind(facts.get(name)) != kind(expected.get(name)):
            raise ValueError(f"{name} of the data is {facts.get(name)!r:.90}")
    height, width, channels = facts["image_shape"]
    sound = {
        "image_shape": channels in (1, 3)
        and all(type(s) is int and 1 <= s <= MAX_SIDE for s in (height, width)),
        "class_names": len(facts["class_names"]) > 0
        and all(isinstance(name, str) for name in facts["class_names"]),
        "num_images": len(facts["num_images"]) == 2
        and all(type(count) is int for count in facts["num_images"]),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{name} of the data is {facts[name]!r:.90}")
    fields: dict[str, Any] = dict(facts)
    for name in ("image_shape", "class_names", "num_images"):  # JSON has no tuples
        fields[name] = tuple(fields[name])
    return DatasetInfo(**fields)


def write_facts(workdir: epath.Path, facts: Mapping[str, Any]) -> None:
    """Writes `data.json`."""
    write_whole(workdir / "data.json", json.dumps(facts) + "\n")


def read_facts(workdir: epath.Path) -> dict[str, Any]:
    """Reads `data.json`; empty where it is missing.

    Raises:
      OSError: if it can't be read.
      ValueError: if it holds no JSON.
    """
    path = workdir / "data.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


def require_same_data(
    stored: Mapping[str, Any], found: Mapping[str, Any], workdir: str
) -> None:
    """Raises an InputError that names the first fact that differs from a stored one."""
    for name in found if stored else ():  # nothing was stored of old runs
        if stored.get(name) != found[name]:
            raise InputError(
                f"{name} of the data is {found[name]!r:.150}, but the run in {workdir} "
                f"has {stored.get(name)!r:.150}; give another --workdir, or the same "
                "data to go on"
            )
