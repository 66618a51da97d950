"""Trained networks in Orbax directories: those that `lrunet_jax.convert` writes."""

import pathlib
import shutil
import tempfile
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.models import abstract_variables
from lrunet_jax.runs.checkpoints import require_same_leaves
from lrunet_jax.runs.earlier import translate
from lrunet_jax.weights.stored_model import (
    StoredModel,
    abstract_input_stats,
    require_facts,
)

FORMAT = 1  # of the directory; 0, without a number, was before the first release


def is_converted(directory: epath.Path) -> bool:
    """Tells whether a directory looks like one that `save_converted` has written."""
    return (directory / "model").exists()


def open_converted(directory: epath.Path) -> StoredModel:
    """Opens a directory that `save_converted` has written.

    Raises:
      InputError: if it can't be read, or a later version has written it.
    """
    try:
        with _checkpointer() as checkpointer:
            only = ocp.args.Composite(model=ocp.args.JsonRestore())
            stored = _stored_model(checkpointer.restore(directory, args=only)["model"])
            require_facts(stored)
            expected = abstract_variables(stored.create_model(), stored.channels)
            found = checkpointer.metadata(directory).item_metadata["variables"].tree
            if "input_stats" in found:
                stats = {"input_stats": abstract_input_stats(stored.channels)}
                expected = expected | stats  # a copy: it is cached
            require_same_leaves(expected, found)
            only = ocp.args.Composite(variables=ocp.args.StandardRestore())
            variables = checkpointer.restore(directory, args=only)["variables"]
    except Exception as error:  # Orbax has many names for damage
        raise InputError(f"{directory} can't be read: {in_one_line(error)}") from None
    return stored._replace(variables=variables)


def save_converted(stored: StoredModel, directory: pathlib.Path) -> None:
    """Writes a directory, which appears whole or not at all.

    Raises:
      InputError: if it can't be written.
    """
    facts = {"format": FORMAT, **stored._asdict()}
    items = ocp.args.Composite(
        variables=ocp.args.StandardSave(facts.pop("variables")),
        model=ocp.args.JsonSave(facts),
    )
    part = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        part = pathlib.Path(
            tempfile.mkdtemp(".part", f"{directory.name}.", directory.parent)
        )
        with _checkpointer() as checkpointer:
            checkpointer.save((part / "new").absolute(), args=items)
        (part / "new").rename(directory)
    except Exception as error:  # Orbax has many names for a disk that is full
        raise InputError(
            f"{directory} can't be written: {in_one_line(error)}"
        ) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


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
    return StoredModel(variables={}, **translate(facts))


def _checkpointer():
    handler = ocp.CompositeCheckpointHandler(
        variables=ocp.StandardCheckpointHandler(), model=ocp.JsonCheckpointHandler()
    )
    return ocp.Checkpointer(handler)
