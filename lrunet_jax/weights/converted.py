"""Trained networks in Orbax directories: those that `lrunet_jax.convert` writes."""

import contextlib
import sys
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import is_remote
from lrunet_jax.models import abstract_variables
from lrunet_jax.runs.digest import array_digests, json_digests, require_digests
from lrunet_jax.runs.earlier import translate
from lrunet_jax.runs.restoring import names_of_arrays, read_json, restore_arrays
from lrunet_jax.runs.trouble import DamagedError, read_carefully
from lrunet_jax.weights.stored_model import (
    StoredModel,
    abstract_input_stats,
    require_facts,
)

# Of the directory. 0, without a number, was before the first release; 1 had neither
# the names of classes nor the size of images.
FORMAT = 2


def is_converted(directory: epath.Path) -> bool:
    """Tells whether a directory looks like one that `save_converted` has written."""
    return (directory / "model").exists()


def open_converted(directory: epath.Path) -> StoredModel:
    """Opens a directory that `save_converted` has written.

    Raises:
      InputError: if it is damaged, or a later version has written it.
      TroubleError: if the disk or memory is in trouble.
    """
    try:
        stored, verified = read_carefully(directory, lambda: _open(directory))
    except (DamagedError, InputError) as error:
        raise InputError(f"{directory} can't be read: {error}") from None
    if not verified:
        print(f"{directory} is unverified: it has no digest", file=sys.stderr)
    return stored


def save_converted(stored: StoredModel, directory: epath.Path) -> None:
    """Writes a directory, which appears whole or not at all.

    Raises:
      InputError: if it can't be written.
    """
    facts = {"format": FORMAT, **stored._asdict()}
    variables = facts.pop("variables")
    digest = _digest(variables, facts)
    items = ocp.args.Composite(
        variables=ocp.args.StandardSave(variables),
        model=ocp.args.JsonSave(facts),
        digest=ocp.args.JsonSave(digest),
    )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory, args=items)
    except Exception as error:  # Orbax has many names for a disk that is full
        with contextlib.suppress(Exception):  # on a disk, and on remote storage
            for part in directory.parent.glob(
                f"{directory.name}.orbax-checkpoint-tmp*"
            ):
                part.rmtree()
            if is_remote(directory):  # where Orbax writes in place
                directory.rmtree()
        raise InputError(
            f"{directory} can't be written: {in_one_line(error)}"
        ) from None


def _open(directory: epath.Path) -> tuple[StoredModel, bool]:
    """The network, and whether it agrees with its digest; any error may be damage."""
    facts = read_json(directory / "model" / "metadata") or {}
    digest = read_json(directory / "digest" / "metadata")
    if digest is not None:
        require_digests({"model": digest["model"]}, json_digests({"model": facts}))
    stored = _stored_model(facts)
    require_facts(stored)
    target = abstract_variables(stored.create_model(), stored.channels)
    if "input_stats" in names_of_arrays(directory / "variables"):
        stats = {"input_stats": abstract_input_stats(stored.channels)}
        target = target | stats  # a copy: it is cached
    variables = restore_arrays(directory / "variables", target, whole=True)
    if digest is not None:
        require_digests(digest, _digest(variables, facts))
    return stored._replace(variables=variables), digest is not None


def _digest(variables: Any, facts: dict[str, Any]) -> dict[str, str]:
    return array_digests(variables) | json_digests({"model": facts})


def _stored_model(facts: dict[str, Any]) -> StoredModel:
    """The network, still without variables; a ValueError names what is not known."""
    facts = dict(facts)
    version = facts.pop("format", 0)
    if type(version) is not int or version < 0:
        raise ValueError(f"format is {version!r:.90}")
    known = set(StoredModel._fields) - {"variables"}
    names = ", ".join(map(repr, sorted(facts.keys() - known)))
    unknown = f"unknown fields {names}" if names else ""
    if version > FORMAT:
        reason = f"format is {version}, and only {FORMAT} is known here"
        raise ValueError(f"{reason}; {unknown}" if unknown else reason)
    if unknown:
        raise ValueError(unknown)
    for name in ("class_names", "image_size"):  # JSON has no tuples
        if isinstance(facts.get(name), list):
            facts[name] = tuple(facts[name])
    return StoredModel(variables={}, **translate(facts))
