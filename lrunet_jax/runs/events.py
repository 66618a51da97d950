"""TensorBoard's events of a run."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from lrunet_jax.files import is_remote, write_whole

# tensorboardX imports PyTorch where it is installed, for tensors that it gets none of
# here: longer than all else at the start of a run.
_modules: dict[str, Any] = sys.modules
if _hidden := "torch" not in _modules:
    _modules["torch"] = None
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
finally:
    if _hidden:
        del _modules["torch"]


class Events:
    """A file of events, written at once; on remote storage, anew after each step.

    `tensorboardX.SummaryWriter` writes in a thread, which ends silently where a disk
    is full; then the run waits for it for ever.
    """

    def __init__(self, directory: epath.Path, step: int):
        """Begins a file; TensorBoard forgets what others there have after `step`.

        Raises:
          OSError: if it can't be written, as in the methods.
        """
        directory.mkdir(exist_ok=True)
        self._directory = self._local = directory
        self._open = contextlib.ExitStack()
        if is_remote(directory):
            temporary = self._open.enter_context(tempfile.TemporaryDirectory())
            self._local = epath.Path(temporary)
        self._writer = EventsWriter(str(self._local / "events"))
        if step:
            start = SessionLog(status=SessionLog.START)
            self._write(session_log=start, step=step + 1)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step, by their names."""
        for name, value in values.items():
            self._write(summary=scalar(name, value), step=step)
        self._writer.flush()
        if self._local != self._directory:
            for file in self._local.iterdir():
                write_whole(self._directory / file.name, file.read_bytes())

    def close(self) -> None:
        """Closes the file."""
        with self._open:
            self._writer.close()

    def _write(self, **fields):
        self._writer.write_event(Event(wall_time=time.time(), **fields))
