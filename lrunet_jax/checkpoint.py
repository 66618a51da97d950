"""Checkpoints of a run: the two latest and the best, written in the background."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.metrics import accuracy_of
from lrunet_jax.state import TrainState


class Checkpoints:
    """The checkpoints in a directory, by step.

    Each holds the state (parameters, batch statistics, their moving averages, input
    statistics, optimiser state, the epoch's running metrics), the run's config, and the
    test metrics where the step was evaluated. A save that was killed half way is not
    there afterwards.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory
        self._saved_at = time.monotonic()
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=accuracy_of, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy_of,
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(
            directory,
            options=options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self,
        state: TrainState,
        config: dict[str, Any],
        test: dict[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint of `state` at its step.

        Args:
          state: to be stored.
          config: of the run, as plain containers.
          test: `test_loss`, `test_accuracy` and their like, if it was evaluated.
        """
        self._saved_at = time.monotonic()
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_arrays(state)),
                config=ocp.args.JsonSave(config),
            ),
            metrics=test,
        )

    def restore_latest(self, state: TrainState) -> tuple[TrainState, dict] | None:
        """The newest state that can be read, and the config it was stored with.

        A damaged checkpoint is named, set aside (`STEP.damaged`), and the one before
        it is taken.

        Args:
          state: a fresh one, whose shapes, dtypes and shardings are taken.

        Returns:
          None if there is no checkpoint at all.

        Raises:
          InputError: if there are checkpoints, but none can be read.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, state)
            except Exception as error:  # Orbax has many names for damage
                damaged.append(step)
                print(f"checkpoint {step} can't be read: {in_one_line(error)}")
            else:
                self._set_aside(damaged)
                return restored
        if damaged:
            raise InputError(f"no checkpoint in {self._directory} can be read")
        return None

    def _set_aside(self, steps):
        """Out of the way of the run, which will come to these steps again."""
        for step in steps:
            self.path(step).rename(self._directory / f"{step}.damaged")
        if steps:
            self._manager.reload()

    def _restore(self, step, state):
        target = _arrays(state)
        stored = self._manager.item_metadata(step)["state"].tree
        require_same_leaves(target, stored)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), config=ocp.args.JsonRestore()
            ),
        )
        return state.replace(**restored["state"]), restored["config"]

    def seconds_since_save(self) -> float:
        """Since the last checkpoint was begun, or this object was made."""
        return time.monotonic() - self._saved_at

    def latest_path(self) -> epath.Path | None:
        """Where the newest checkpoint is."""
        step = self._manager.latest_step()
        return None if step is None else self.path(step)

    def path(self, step: int) -> epath.Path:
        """Where the checkpoint of a step is."""
        return self._directory / str(step)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.close()


def read_checkpoint(
    directory: epath.Path,
    step: int | None,
    describe: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[int, dict[str, Any], dict[str, Any], dict[str, float]]:
    """A run's checkpoint, on no device; nothing in the directory is touched.

    Args:
      directory: of the run's checkpoints.
      step: which; None for the one of the best test accuracy, or the latest if none
        was evaluated.
      describe: gives, for the run's config, the fields of the state that are wanted,
        as abstract arrays.

    Returns:
      Its step, the wanted fields, its config and its test metrics.

    Raises:
      InputError: if it is not there, can't be read, or holds something else.
    """
    options = ocp.CheckpointManagerOptions(best_fn=accuracy_of, read_only=True)
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
    }
    try:
        with ocp.CheckpointManager(
            directory, options=options, item_handlers=handlers
        ) as manager:
            steps = sorted(manager.all_steps())
            if step is None:
                best = manager.best_step()
                step = manager.latest_step() if best is None else best
            require(
                step in steps, "step", step, f"one of those in {directory}: {steps}"
            )
            only_config = ocp.args.Composite(config=ocp.args.JsonRestore())
            config = manager.restore(step, args=only_config)["config"]
            wanted = describe(config)
            stored = manager.item_metadata(step)["state"].tree
            require_same_leaves(wanted, {name: stored.get(name, {}) for name in wanted})
            numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
            )
            arguments = ocp.args.PyTreeRestore(
                wanted, restore_args=numpy, partial_restore=True
            )
            only_state = ocp.args.Composite(state=arguments)
            state = manager.restore(step, args=only_state)["state"]
            metrics = manager.metrics(step) or {}
    except InputError:
        raise
    except Exception as error:  # Orbax has many names for damage
        which = "a checkpoint" if step is None else f"checkpoint {step}"
        raise InputError(
            f"{which} in {directory} can't be read: {in_one_line(error)}"
        ) from None
    return step, state, config, metrics


def _arrays(state):
    """The state's arrays by field, without its functions."""
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "input_stats": state.input_stats,
        "ema": state.ema,
        "opt_state": state.opt_state,
        "epoch": state.epoch,
        "metrics": state.metrics,
    }


def require_same_leaves(target: Any, stored: Any) -> None:
    """Compares names, shapes and dtypes; Orbax itself casts without a word.

    Raises:
      ValueError: that names the first leaf that differs.
    """
    describe = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    named = lambda tree: {
        jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    expected, found = named(target), named(stored)
    for name in sorted(expected | found):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} is {found.get(name, 'not there')}, not "
                f"{expected.get(name, 'expected')}"
            )
