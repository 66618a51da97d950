"""The directory of a run that is being trained."""

from typing import Any

import ml_collections
from etils import epath

from lrunet_jax.errors import InputError
from lrunet_jax.files import write_whole
from lrunet_jax.runs.checkpoints import Checkpoints
from lrunet_jax.runs.config import changes, read_config, require_same_run, write_config
from lrunet_jax.runs.record import Record


class Workdir:
    """The config, checkpoints and record of a run.

    A context manager, which waits at its end until everything is written. To be used
    in this order: `restore`, `start`, `save`. Before `start` nothing in the directory
    is overwritten.
    """

    def __init__(self, workdir: str, config: ml_collections.ConfigDict):
        """Checks that the directory belongs to this run, and makes it if it is missing.

        Raises:
          InputError: if it is the workdir of another run, or can't be written.
        """
        self.path = epath.Path(workdir).expanduser().resolve()
        self._config = config
        try:
            if (self.path / "config.json").exists():
                require_same_run(changes(read_config(self.path), config), workdir)
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / "writable", "")
            (self.path / "writable").unlink()
        except OSError as error:
            raise InputError(
                f"workdir is {workdir!r}, which can't be used: {error}; it must be a "
                "directory that can be written"
            ) from None
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self._record: Record | None = None

    def __enter__(self) -> "Workdir":
        """The workdir itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until everything is written."""
        self.checkpoints.close()
        if self._record is not None:
            self._record.close()

    def restore(self, fresh: Any) -> tuple[Any, dict[str, tuple]] | None:
        """The state of the latest checkpoint.

        Args:
          fresh: a state, whose shapes, dtypes and shardings are taken.

        Returns:
          The state, and the fields of the config that have changed, with their old and
          new values; None if there is no checkpoint.

        Raises:
          InputError: if no checkpoint can be read, or it is of another run.
        """
        if (restored := self.checkpoints.restore_latest(fresh)) is None:
            return None
        state, stored = restored
        changed = changes(stored, self._config)
        require_same_run(changed, str(self.path))
        return state, changed

    def start(self, step: int) -> Record:
        """Writes the config, and opens the record, without what is after `step`."""
        self._record = Record(self.path, step)
        write_config(self.path, self._config.to_dict())
        return self._record

    def save(self, state: Any, test: dict[str, float] | None = None) -> None:
        """Starts to write a checkpoint of `state`, with its `test` metrics."""
        config = self._config.to_dict()
        self.checkpoints.save(int(state.step), state, config, test)
