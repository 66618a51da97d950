"""Checkpoints of a run: the two latest and the best, written in the background."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.runs.earlier import translate
from lrunet_jax.runs.record import accuracy_of
from lrunet_jax.verbosity import only_errors


class Checkpoints:
    """The checkpoints in a directory, by step.

    Each holds the arrays of the training state, the run's config, and the test
    metrics if the step was evaluated. A save that is killed leaves no checkpoint.
    """

    def __init__(self, directory: epath.Path):
        """Opens the directory, and makes it if need be."""
        self._directory = directory
        self._saved_at = time.monotonic()
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=accuracy_of, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = _manager(
            directory,
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )

    @only_errors()
    def save(
        self,
        step: int,
        state: Any,
        config: dict[str, Any],
        test: dict[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint.

        Args:
          step: of the state, and the name of the checkpoint.
          state: every field of it that holds arrays is stored.
          config: of the run, as plain containers.
          test: the metrics of `compile_evaluation`, if the state was evaluated.
        """
        self._saved_at = time.monotonic()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(array_fields(state)),
                config=ocp.args.JsonSave(config),
            ),
            metrics=test,
        )

    @only_errors()
    def restore_latest(self, state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state that can be read, and the config it was stored with.

        A damaged checkpoint is reported, renamed to `STEP.damaged`, and the one before
        it is taken.

        Args:
          state: a fresh one, whose shapes, dtypes and shardings are taken.

        Returns:
          The state and the config; None if there is no checkpoint at all.

        Raises:
          InputError: if there are checkpoints, but none can be read.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                config = _restore_config(self._manager, step)
                stored = _metadata(self._manager, step)
                target = array_fields(state)
                fields = _restore_fields(self._manager, step, stored, target)
            except Exception as error:  # Orbax has many names for damage
                damaged.append(step)
                print(f"checkpoint {step} can't be read: {in_one_line(error)}")
            else:
                self._set_aside(damaged)
                return dataclasses.replace(state, **fields), config
        if damaged:
            raise InputError(f"no checkpoint in {self._directory} can be read")
        return None

    def _set_aside(self, steps):
        """Renames checkpoints, as the run will come to their steps again."""
        for step in steps:
            self.path(step).rename(self._directory / f"{step}.damaged")
        if steps:
            self._manager.reload()

    def minutes_since_save(self) -> float:
        """The time since the last checkpoint was begun, or this object was made."""
        return (time.monotonic() - self._saved_at) / 60

    def latest_path(self) -> epath.Path | None:
        """The newest checkpoint's directory; None if there is none."""
        step = self._manager.latest_step()
        return None if step is None else self.path(step)

    def path(self, step: int) -> epath.Path:
        """The directory of a step's checkpoint."""
        return self._directory / str(step)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


@only_errors()
def read_checkpoint(
    directory: epath.Path,
    step: int | None,
    wanted_fields: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, float]]:
    """A run's checkpoint, as NumPy arrays; nothing in the directory is changed.

    Args:
      directory: of the run's checkpoints.
      step: which; None for the one of the best test accuracy, or the latest if none
        was evaluated.
      wanted_fields: a function from the run's config to the fields of the state that
        are wanted, as abstract arrays.

    Returns:
      Its step, the wanted fields, its config and its test metrics.

    Raises:
      InputError: if it is not there, can't be read, or its arrays are others.
    """
    try:
        with _manager(directory, read_only=True) as manager:
            steps = sorted(manager.all_steps())
            if step is None:
                best = manager.best_step()
                step = manager.latest_step() if best is None else best
            allowed = f"one of those in {directory}: {steps}"
            require(step in steps, "step", step, allowed)
            config = _restore_config(manager, step)
            stored, wanted = _metadata(manager, step), wanted_fields(config)
            stored = {name: stored.get(name, {}) for name in wanted}
            state = _restore_fields(manager, step, stored, wanted)
            metrics = manager.metrics(step) or {}
    except InputError:
        raise
    except Exception as error:  # Orbax has many names for damage
        which = "a checkpoint" if step is None else f"checkpoint {step}"
        raise InputError(
            f"{which} in {directory} can't be read: {in_one_line(error)}"
        ) from None
    return step, state, config, metrics


def array_fields(state: Any) -> dict[str, Any]:
    """The fields of a dataclass of `flax.struct` that hold arrays, by name."""
    return {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.metadata.get("pytree_node", True)
    }


def require_same_leaves(target: Any, stored: Any) -> None:
    """Compares names, shapes and dtypes, as Orbax casts silently.

    Raises:
      ValueError: that names the first leaf that differs.
    """
    form = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    expected, found = _by_name(target), _by_name(stored)
    for name in sorted(expected | found):
        wanted = form(expected[name]) if name in expected else "expected"
        there = form(found[name]) if name in found else "not there"
        if wanted != there:
            raise ValueError(f"{name} is {there}, not {wanted}")


def _manager(directory, **options):
    items = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays, json = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
    items.add("state", ocp.args.PyTreeSave, arrays)
    items.add("state", ocp.args.PyTreeRestore, arrays)
    items.add("config", ocp.args.JsonSave, json)
    items.add("config", ocp.args.JsonRestore, json)
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(best_fn=accuracy_of, **options),
        handler_registry=items,
    )


def _restore_config(manager, step):
    only = ocp.args.Composite(config=ocp.args.JsonRestore())
    return translate(manager.restore(step, args=only)["config"])


def _metadata(manager, step):
    return manager.item_metadata(step)["state"].tree


def _restore_fields(manager, step, stored, target):
    """The fields of `target`: in its shardings, where it has any, else in NumPy.

    `stored` is the metadata of those to read, and must be of the same leaves.
    """
    require_same_leaves(target, translate(stored))
    wanted = _by_name(target)

    def restore_args(path, _):
        sharding = getattr(wanted.get(_name(path)), "sharding", None)
        if sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=sharding)

    abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    arguments = ocp.args.PyTreeRestore(
        jax.tree.map(abstract, stored),
        restore_args=jax.tree_util.tree_map_with_path(restore_args, stored),
        partial_restore=True,
    )
    only = ocp.args.Composite(state=arguments)
    found = _by_name(translate(manager.restore(step, args=only)["state"]))
    return jax.tree_util.tree_map_with_path(lambda path, _: found[_name(path)], target)


def _by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves}


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")
