"""Checkpoints of a run: the two latest and the best, written in the background."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lrunet_jax.runs.digest import array_digests, json_digests
from lrunet_jax.runs.record import Line, accuracy_of
from lrunet_jax.runs.restoring import alone, steps_in


class Checkpoints:
    """The checkpoints in a directory, by step.

    Each holds the arrays of the training state, the run's config, its record up to
    there, the facts about its data, the metrics if the step was evaluated, and the
    digests of all of them. A save that is killed leaves no checkpoint. `runs.restoring`
    reads them.
    """

    def __init__(self, directory: epath.Path):
        """Opens the directory, and makes it if need be."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()
        self._latest: int | None = None  # that was begun
        policies = [
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                get_metric_fn=accuracy_of, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        items = ocp.handlers.DefaultCheckpointHandlerRegistry()
        json = ocp.JsonCheckpointHandler(multiprocessing_options=alone())
        arrays = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
        items.add("state", ocp.args.PyTreeSave, arrays)
        for name in ("config", "data", "record", "digest"):
            items.add(name, ocp.args.JsonSave, json)
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=accuracy_of,
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                create=False,
                multiprocessing_options=alone(),
            ),
            handler_registry=items,
        )

    def save(
        self,
        step: int,
        state: Any,
        config: dict[str, Any],
        data: dict[str, Any],
        lines: Sequence[Line] = (),
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts to write a checkpoint.

        Args:
          step: of the state, and the name of the checkpoint.
          state: every field of it that holds arrays is stored.
          config: of the run, as plain containers.
          data: the facts about its data, as plain containers.
          lines: of the run's record.
          metrics: of `compile_evaluation`, if the state was evaluated.
        """
        self._saved_at = time.monotonic()
        before, self._latest = self._latest, step
        # Copies, as the state's memory is given to the next step. Arrays that other
        # processes have as well would be written by all of them.
        fields = jax.tree.map(np.array, array_fields(state))
        record = {"lines": list(lines)}
        plain = {"config": config, "data": data, "record": record}
        plain |= {} if metrics is None else {"metrics": metrics}
        items = json_digests({"step": step, **plain})
        digest = {"state": array_digests(fields), "items": items}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(fields),
                config=ocp.args.JsonSave(config),
                data=ocp.args.JsonSave(data),
                record=ocp.args.JsonSave(record),
                digest=ocp.args.JsonSave(digest),
            ),
            metrics=metrics,
            force=True,  # also where the name of another one is a later step
        )
        self._require_whole(before)  # for which Orbax has waited

    def minutes_since_save(self) -> float:
        """The time since the last checkpoint was begun, or this object was made."""
        return (time.monotonic() - self._saved_at) / 60

    def latest_path(self) -> epath.Path | None:
        """The newest checkpoint's directory, once it is written; None without any."""
        with contextlib.suppress(Exception):  # of the one that is being written
            self._manager.wait_until_finished()
        step = max(steps_in(self._directory), default=None)
        return None if step is None else self.path(step)

    def path(self, step: int) -> epath.Path:
        """The directory of a step's checkpoint."""
        return self._directory / str(step)

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          Exception: of Orbax's many, or an OSError, if it could not be; as in `save`.
        """
        self._manager.close()
        self._require_whole(self._latest)

    def is_whole(self, step: int) -> bool:
        """Tells whether a step's checkpoint is there, with all its arrays.

        Where a directory can't be listed, Orbax finds no arrays to put together, and
        writes a checkpoint without them, and without a word.
        """
        return (self.path(step) / "state" / "manifest.ocdbt").exists()

    def _require_whole(self, step):
        if step is not None and not self.is_whole(step):
            raise OSError(f"checkpoint {step} lacks its arrays")


def array_fields(state: Any) -> dict[str, Any]:
    """The fields of a dataclass of `flax.struct` that hold arrays, by name."""
    return {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.metadata.get("pytree_node", True)
    }
