"""Trained networks in Orbax directories: those that `lrunet_jax.convert` writes."""

import pathlib
import shutil
import sys
import tempfile
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.models import abstract_variables
from lrunet_jax.runs.digest import array_digests, json_digests, require_digests
from lrunet_jax.runs.earlier import translate
from lrunet_jax.runs.restoring import require_same_leaves
from lrunet_jax.runs.trouble import DamagedError, read_carefully
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


def save_converted(stored: StoredModel, directory: pathlib.Path) -> None:
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


def _open(directory: epath.Path) -> tuple[StoredModel, bool]:
    """The network, and whether it agrees with its digest; any error may be damage."""
    with _checkpointer() as checkpointer:
        restore = lambda **only: checkpointer.restore(
            directory, args=ocp.args.Composite(**only)
        )
        facts = restore(model=ocp.args.JsonRestore())["model"]
        digest = None
        if (directory / "digest").exists():
            digest = restore(digest=ocp.args.JsonRestore())["digest"]
            require_digests({"model": digest["model"]}, json_digests({"model": facts}))
        stored = _stored_model(facts)
        require_facts(stored)
        expected = abstract_variables(stored.create_model(), stored.channels)
        found = checkpointer.metadata(directory).item_metadata["variables"].tree
        if "input_stats" in found:
            stats = {"input_stats": abstract_input_stats(stored.channels)}
            expected = expected | stats  # a copy: it is cached
        require_same_leaves(expected, found)
        variables = restore(variables=ocp.args.StandardRestore())["variables"]
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
    return StoredModel(variables={}, **translate(facts))


def _checkpointer():
    handler = ocp.CompositeCheckpointHandler(
        variables=ocp.StandardCheckpointHandler(),
        model=ocp.JsonCheckpointHandler(),
        digest=ocp.JsonCheckpointHandler(),
    )
    return ocp.Checkpointer(handler)
