"""TensorBoard's events of a run."""

import time
from collections.abc import Mapping

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class Events:
    """A file of events, written at once.

    `tensorboardX.SummaryWriter` writes in a thread, which ends silently where a disk
    is full; then the run waits for it for ever.
    """

    def __init__(self, directory: epath.Path, step: int):
        """Begins a file; TensorBoard forgets what others there have after `step`.

        Raises:
          OSError: if it can't be written, as in the methods.
        """
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        if step:
            start = SessionLog(status=SessionLog.START)
            self._write(session_log=start, step=step + 1)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of a step, by their names."""
        for name, value in values.items():
            self._write(summary=scalar(name, value), step=step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, **fields):
        self._writer.write_event(Event(wall_time=time.time(), **fields))
