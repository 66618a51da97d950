"""Checkpoints of a run, read: the latest to go on from, the best to use."""

import functools
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lrunet_jax.errors import InputError, TroubleError, in_one_line, require
from lrunet_jax.runs.digest import (
    array_digests,
    json_digests,
    require_digests,
)
from lrunet_jax.runs.earlier import translate
from lrunet_jax.runs.leaves import leaf_name, leaves_by_name
from lrunet_jax.runs.record import Line, accuracy_of, require_lines
from lrunet_jax.runs.trouble import DamagedError, read_carefully
from lrunet_jax.verbosity import unlogged

# From a run's config and the facts about its data to the wanted fields of its state,
# as abstract arrays.
Wanted = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]

# What Orbax calls the files of a checkpoint's items that are JSON.
PLAIN_FILES = {
    **{"config": "metadata", "data": "metadata"},
    **{"metrics": "metrics", "record": "metadata"},
}


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: its name.
      fields: of the training state, those that were wanted.
      config: of the run.
      metrics: of the evaluation; empty if it was not evaluated.
      data: the facts about the data, see `DatasetInfo`; empty in one written before
        they were kept.
      lines: of the run's record up to here; None in one written before the first
        release, which has no digest either.
      verified: whether it agrees with its digest; False if it has none.
    """

    step: int
    fields: dict[str, Any]
    config: dict[str, Any]
    metrics: dict[str, float]
    data: dict[str, Any]
    lines: list[Line] | None
    verified: bool


@unlogged()
def restore_latest(directory: epath.Path, wanted: Wanted) -> Checkpoint | None:
    """The newest checkpoint that is not damaged; None if there is none at all.

    Those that are damaged are named. Where another one is not, they are renamed to
    `STEP.damaged`, as the run will come to their steps again.

    Args:
      directory: of the run's checkpoints.
      wanted: gives the fields to read.

    Raises:
      InputError: if there are checkpoints, but all are damaged, and from `wanted`.
      TroubleError: if the disk or memory is in trouble; no checkpoint is renamed
        because of that.
    """
    found, damaged = None, []
    for step in reversed(steps_in(directory)):
        path = directory / str(step)
        try:
            if found is None:
                read = functools.partial(_read, path, wanted, whole=True)
                found = read_carefully(path, read)
            else:  # the best is kept by its metrics
                read_carefully(path, functools.partial(_plain_items, path))
        except DamagedError as error:
            print(f"checkpoint {step} can't be read: {error}")
            damaged.append(path)
    if damaged and not found:
        raise InputError(f"no checkpoint in {directory} can be read")
    for path in damaged:
        _set_aside(path)
    return found


@unlogged()
def read_checkpoint(
    directory: epath.Path, step: int | None, wanted: Wanted
) -> Checkpoint:
    """A run's checkpoint; nothing in the directory is changed.

    On standard error it is said if another one's metrics are damaged, as that may have
    been the best, and if this one has no digest.

    Args:
      directory: of the run's checkpoints.
      step: which; None for the one of the best test accuracy, or the latest if none
        was evaluated.
      wanted: as for `restore_latest`.

    Raises:
      InputError: if it is not there, is damaged, or its arrays are others.
      TroubleError: if the disk or memory is in trouble.
    """
    if step is None:
        step = _best_step(directory)
    else:
        steps = steps_in(directory)
        require(step in steps, "step", step, f"one of those in {directory}: {steps}")
    path = directory / str(step)
    try:
        found = read_carefully(path, functools.partial(_read, path, wanted))
    except DamagedError as error:
        raise InputError(
            f"checkpoint {step} in {directory} can't be read: {error}"
        ) from None
    if not found.verified:
        print(f"{path} is unverified: it has no digest", file=sys.stderr)
    return found


def latest_items(directory: epath.Path) -> dict[str, Any]:
    """The items beside arrays of the newest checkpoint, of those that can be read.

    `config`, `data`, `record` and `metrics`; empty if there is none.
    """
    for step in reversed(steps_in(directory)):
        try:
            items, _ = _plain_items(directory / str(step))
            return items | {"config": translate(items["config"])}
        except Exception:  # that is said when the checkpoint is restored
            continue
    return {}


def steps_in(directory: epath.Path) -> list[int]:
    """The steps of the checkpoints in a directory, which may be missing; ascending."""
    if not directory.exists():
        return []
    names = [path.name for path in directory.iterdir() if _is_finished(path)]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def _is_finished(path):
    """Tells whether Orbax has finished a directory.

    On a disk it is then renamed; on Google's storage, where that is slow, a file is
    added.
    """
    on_disk = not os.fspath(path).startswith("gs://")
    return path.is_dir() if on_disk else (path / "commit_success.txt").exists()


def alone() -> ocp.options.MultiprocessingOptions:
    """Options by which Orbax reads and writes without a word to other processes."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process_{process}",
    )


def require_same_leaves(target: Any, stored: Any) -> None:
    """Compares names, shapes and dtypes, as Orbax casts silently.

    Raises:
      ValueError: that names the first leaf that differs.
    """
    form = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    expected, found = leaves_by_name(target), leaves_by_name(stored)
    for name in sorted(expected | found):
        wanted = form(expected[name]) if name in expected else "expected"
        there = form(found[name]) if name in found else "not there"
        if wanted != there:
            raise ValueError(f"{name} is {there}, not {wanted}")


def _best_step(directory):
    accuracies, undamaged, damaged = {}, [], {}
    for step in steps_in(directory):
        path = directory / str(step)
        try:
            items, _ = read_carefully(path, functools.partial(_plain_items, path))
        except DamagedError as error:
            damaged[step] = f"checkpoint {step} in {directory} can't be read: {error}"
            continue
        except TroubleError:
            if not path.exists():  # a run that trains has deleted it
                continue
            raise
        undamaged.append(step)
        if "metrics" in items:
            accuracies[accuracy_of(items["metrics"]), step] = step
    if not undamaged:
        reason = damaged[max(damaged)] if damaged else f"{directory} has no checkpoint"
        raise InputError(reason)
    for reason in damaged.values():
        print(f"{reason}; it may have been the best", file=sys.stderr)
    return accuracies[max(accuracies)] if accuracies else undamaged[-1]


def _set_aside(path):
    names = (f"{path.name}.damaged{i or ''}" for i in range(1000))
    free = (path.with_name(name) for name in names)
    try:
        path.rename(next(target for target in free if not target.exists()))
    except OSError as error:
        raise TroubleError(f"{path} can't be renamed: {in_one_line(error)}") from None


def _read(path, wanted, whole=False):
    """Reads a checkpoint, perhaps the whole of its state; any error may be damage."""
    items, digests = _plain_items(path)
    config = translate(items["config"])
    target = wanted(config, items.get("data", {}))
    fields = restore_arrays(path / "state", target, whole=whole)
    if digests is not None:
        stored = digests["state"]
        if not whole:
            stored = {name: stored.get(name) for name in fields}
        require_digests(stored, array_digests(fields))
    return Checkpoint(
        step=int(path.name),
        fields=fields,
        config=config,
        metrics=items.get("metrics", {}),
        data=items.get("data", {}),
        lines=items["record"]["lines"] if "record" in items else None,
        verified=digests is not None,
    )


def _plain_items(path):
    """The items of a checkpoint beside arrays, and its digests; None without any."""
    digests = read_json(path / "digest" / "metadata")
    found = {name: read_json(path / name / file) for name, file in PLAIN_FILES.items()}
    items = {name: value for name, value in found.items() if value is not None}
    if digests is not None:
        named = items | {"step": int(path.name)}
        require_digests(digests["items"], json_digests(named))
    if "record" in items:
        require_lines(items["record"]["lines"])
    read_json(path / "_CHECKPOINT_METADATA")  # Orbax reads it when the run goes on
    if "metrics" in items:
        accuracy = accuracy_of(items["metrics"])
        if type(accuracy) not in (int, float) or not 0 <= accuracy <= 1:
            raise ValueError(f"metrics have the accuracy {accuracy!r:.90}")
    return items, digests


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """The JSON object in a file of an item; None where its directory is missing.

    Raises:
      OSError: if it can't be read.
      ValueError: if it holds anything else.
    """
    if not path.parent.exists():
        return None
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is no JSON object, but a {type(value).__name__}")
    return value


def names_of_arrays(directory: epath.Path) -> set[str]:
    """The names of an item's pytrees of arrays; errors as in `restore_arrays`."""
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
    return set(handler.metadata(directory).tree)


def restore_arrays(
    directory: epath.Path, target: dict[str, Any], *, whole: bool
) -> dict[str, Any]:
    """The arrays of an item, in NumPy.

    Args:
      directory: of the item.
      target: a dict of pytrees of abstract arrays, with the names to read; other
        arrays, or none, are an error.
      whole: whether the item has no names but those of `target`.

    Raises:
      ValueError: that names the first array that differs; Orbax has other errors.
    """
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
    stored = handler.metadata(directory).tree
    if not whole:
        stored = {name: stored.get(name, {}) for name in target}
    require_same_leaves(target, translate(stored))
    abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    in_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
    arguments = ocp.args.PyTreeRestore(
        jax.tree.map(abstract, stored),
        restore_args=jax.tree.map(in_numpy, stored),
        partial_restore=True,
    )
    found = leaves_by_name(translate(handler.restore(directory, args=arguments)))
    by_path = lambda path, _: found[leaf_name(path)]
    return jax.tree_util.tree_map_with_path(by_path, target)
