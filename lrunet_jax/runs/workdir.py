"""The directory of a run that is being trained."""

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Any

import ml_collections

from lrunet_jax.errors import InputError, TroubleError, in_one_line
from lrunet_jax.files import find_path, is_remote
from lrunet_jax.runs.checkpoints import Checkpoints, array_fields
from lrunet_jax.runs.config import changes, read_config, require_same_run, write_config
from lrunet_jax.runs.curves import plot_run
from lrunet_jax.runs.facts import require_same_data, write_facts
from lrunet_jax.runs.lock import locked
from lrunet_jax.runs.record import Line, Record, read_lines
from lrunet_jax.runs.restoring import (
    Checkpoint,
    latest_items,
    read_checkpoint,
    restore_latest,
    steps_in,
)
from lrunet_jax.runs.trouble import OF_PATHS
from lrunet_jax.verbosity import unlogged

_FILES = ("config.json", "data.json", "metrics.jsonl", "curves.png", "lock")
_DIRECTORIES = ("checkpoints", "tensorboard")


class Workdir:
    """The config, checkpoints and record of a run.

    When it is made, nothing is written. Within its context it holds the directory's
    lock, and is used in this order: `restore`, `start`, `save`. At the context's end it
    waits until everything is written.
    """

    record: Record
    checkpoints: Checkpoints

    def __init__(self, workdir: str, config: ml_collections.ConfigDict):
        """Checks that the directory belongs to this run, if it is there already.

        Raises:
          InputError: if it is the workdir of another run, or can't be read, or another
            process trains in it.
        """
        self._name = workdir
        self._config = config
        self._facts: dict[str, Any] = {}
        self._locked = contextlib.ExitStack()  # while this is so
        self._open = contextlib.ExitStack()  # what is to be closed before
        self._latest: tuple | None = None  # the arguments of the latest save
        self._damaged_config = ""
        self.path = find_path("workdir", workdir)
        with self._must_be_usable():
            _require_writable(self.path)
            if os.path.isfile(self.path / "lock"):
                with locked(self.path / "lock", sign=False):
                    self._check()
            else:
                self._check()

    def __enter__(self) -> "Workdir":
        """Makes the directory if it is missing, and takes its lock.

        Raises:
          InputError: if it can't be written, and as when this was made.
        """
        with contextlib.ExitStack() as stack:
            with self._must_be_usable():
                self.path.mkdir(parents=True, exist_ok=True)
                lock = locked(self.path / "lock", sign=True)
                self._lock_is_there = stack.enter_context(lock)
                self._check()  # another process may have been quicker
                stack.enter_context(unlogged())  # Orbax writes in threads of its own
            self._locked = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits until everything is written.

        Raises:
          TroubleError: if it could not be, unless something else has failed before.
        """
        with self._locked:
            try:
                self._open.close()
            except Exception as error:  # Orbax has many names for a disk that is full
                if kind is None:
                    raise self._trouble(error) from error

    def signature(self) -> str:
        """The content of the lock's file, by which others know the directory."""
        with self._must_be_usable():
            return (self.path / "lock").read_text()

    def has_checkpoints(self) -> bool:
        """Tells whether there is a checkpoint to go on from, perhaps a damaged one."""
        with self._must_be_usable():
            return bool(steps_in(self.path / "checkpoints"))

    def epochs_done(self) -> int:
        """The epochs that the newest checkpoint's record has; 0 if it has none."""
        lines = self._items.get("record", {}).get("lines")
        return lines[-1]["epoch"] if lines else 0

    def restore(self, fresh: Any) -> tuple[Checkpoint, dict[str, tuple]] | None:
        """The latest checkpoint.

        Args:
          fresh: a state, whose shapes and dtypes are taken.

        Returns:
          The checkpoint, and the fields of the config that have changed, with their old
          and new values; None if there is no checkpoint.

        Raises:
          InputError: if no checkpoint can be read, or it is of another run.
          TroubleError: if the disk or memory is in trouble.
        """

        def wanted(config, _):
            require_same_run(changes(config, self._config), self._name)
            return array_fields(fresh)

        with self._must_be_usable():
            found = restore_latest(self.path / "checkpoints", wanted)
        return found and (found, changes(found.config, self._config))

    def set_data(
        self, facts: dict[str, Any], config: ml_collections.ConfigDict
    ) -> None:
        """Sets the facts about the data, before anything else is done.

        Args:
          facts: see `runs.facts`.
          config: of the run, with what was left to follow from the data.

        Raises:
          InputError: that names the first fact which is another one in the run.
        """
        require_same_data(self._items.get("data", {}), facts, self._name)
        self._facts, self._config = facts, config

    def start(self, step: int, lines: list[Line] | None) -> None:
        """Writes config and facts, and opens the record and the checkpoints.

        Args:
          step: that the run goes on from; what the record has of later ones is removed.
          lines: of the record up to there; None to take those that are in the file.
        """
        with self._must_be_usable():
            for name in _FILES:  # what a run that was killed left of them
                for part in self.path.glob(f"{name}.*.part"):
                    part.unlink()
            self.record = Record(self.path, step, lines)
            self._open.callback(self.record.close)
            if self._damaged_config:
                print(f"{self._damaged_config}; it is written anew from the checkpoint")
            write_config(self.path, self._config.to_dict())
            write_facts(self.path, self._facts)
        try:
            self.checkpoints = Checkpoints(self.path / "checkpoints")
        except Exception as error:
            raise self._trouble(error) from error
        self._open.callback(self.checkpoints.close)

    def save(
        self,
        state: Any,
        line: Line | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Adds an epoch's `line` to the record, and starts to write a checkpoint.

        Where one of the two fails, the other one is made nevertheless.

        Args:
          state: of the training.
          line: of the epoch, if it is done.
          metrics: of `state`, if it was evaluated.

        Raises:
          TroubleError: if the disk does not take it.
        """
        config, lines = self._config.to_dict(), self.record.lines
        latest = int(state.step), state, config, self._facts, lines, metrics
        self._latest = latest
        if not self._lock_is_there():
            raise self._trouble(FileNotFoundError("its lock is gone, or another one"))
        writes = [lambda: self.checkpoints.save(*latest)]
        if line is not None:
            writes.insert(0, lambda: self.record.append(line))
        failures = []
        for write in writes:
            try:
                write()
            except Exception as error:  # Orbax has many names for a disk that is full
                failures.append(error)
        if failures:
            raise self._trouble(failures[0]) from failures[0]

    def draw_curves(self) -> None:
        """Draws the record.

        Raises:
          TroubleError: if the disk does not take it.
        """
        try:
            plot_run(self.record.lines, self.path / "curves.png")
        except Exception as error:  # remote storage has errors of its own
            raise self._trouble(error) from error

    def best(self, fields: dict[str, Any]) -> Checkpoint | None:
        """The best checkpoint; None if none can be read, which is then said.

        Args:
          fields: of the state that are wanted, as abstract arrays.
        """
        if self.checkpoints.latest_path() is None:  # once all of them are written
            return None
        checkpoints = self.path / "checkpoints"
        try:
            return read_checkpoint(checkpoints, None, lambda *_: fields)
        except InputError as error:
            print(f"{error}; it is not tested")
            return None

    def lines(self) -> Sequence[Line]:
        """The lines of the record."""
        return self.record.lines

    def minutes_since_save(self) -> float:
        """The time since the last checkpoint was begun, or the first could be."""
        return self.checkpoints.minutes_since_save()

    def latest_checkpoint(self) -> str:
        """The newest checkpoint's directory, once it is written; empty without any."""
        return str(self.checkpoints.latest_path() or "")

    def _check(self):
        """Compares the config of the newest checkpoint, or the one written, with ours.

        A checkpoint's goes first, as it has a digest; `config.json` is written anew.
        """
        for name in (*_FILES, *_DIRECTORIES):
            path, is_file = self.path / name, name in _FILES
            is_right = os.path.isfile(path) if is_file else os.path.isdir(path)
            if os.path.lexists(path) and not is_right:  # a link that leads nowhere too
                allowed = "a file" if is_file else "a directory"
                raise InputError(f"{path} is in the way; it must be {allowed}")
        self._items = latest_items(self.path / "checkpoints")
        stored = self._items.get("config")
        try:
            if (self.path / "config.json").exists():
                written = read_config(self.path)
                stored = written if stored is None else stored
        except InputError as error:
            if stored is None:
                raise
            self._damaged_config = str(error)
        if stored is not None:
            require_same_run(changes(stored, self._config), self._name)
        if not self.has_checkpoints() and (epochs := len(read_lines(self.path))) > 2:
            # A run that was killed early leaves one or two.
            raise InputError(
                f"{self.path / 'metrics.jsonl'} holds {epochs} epochs, and there is no "
                "checkpoint to go on from; give another --workdir, or move it away"
            )

    @contextlib.contextmanager
    def _must_be_usable(self):
        try:
            yield
        except (*OF_PATHS, PermissionError) as error:
            raise InputError(
                f"workdir is {self._name!r}, which can't be used: {error}; it must be "
                "a directory that can be written"
            ) from None
        except (InputError, TroubleError):
            raise
        except Exception as error:
            if not isinstance(error, OSError) and not is_remote(self.path):
                raise
            # Remote storage has errors of its own.
            raise TroubleError(
                f"{self._name} can't be used now: {in_one_line(error)}"
            ) from error

    def _trouble(self, error):
        """The error to raise; where the latest state is not saved, it is tried again.

        That helps where the directory was deleted.
        """
        message = f"{self.path} can't be written: {in_one_line(error)}"
        if self._latest is None:
            return TroubleError(message)
        saved = self.checkpoints.path(self._latest[0])
        with contextlib.suppress(Exception):
            self.checkpoints.close()  # another one may have failed
        is_saved = False
        with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
            if not self._lock_is_there():
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / "lock").touch(exist_ok=False)  # or another one writes here
                stack.enter_context(locked(self.path / "lock", sign=True))
            if not self.checkpoints.is_whole(self._latest[0]):
                if saved.exists():
                    saved.rmtree()
                with contextlib.closing(Checkpoints(saved.parent)) as again:
                    again.save(*self._latest)
            is_saved = self.checkpoints.is_whole(self._latest[0])
        step = f"step {self._latest[0]:,}, which the run has come to,"
        place = f"is saved in {saved}" if is_saved else "is not saved"
        return TroubleError(f"{message}; {step} {place}")


def _require_writable(path):
    """Raises an OSError unless a local directory is writable, or can be made."""
    if is_remote(path):  # which only a write can tell
        return
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
