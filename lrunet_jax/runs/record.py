"""The record of a run: JSON lines and TensorBoard events, one entry an epoch."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import write_whole

Line = dict[str, Any]  # an epoch in the record, see `Record`


class Record:
    """`metrics.jsonl` and `tensorboard/` in a run's workdir.

    When a run is resumed, the lines after the step that it resumes from are removed, so
    that the record equals that of an undisturbed run. A line is written whole or not at
    all. It holds the numbers `step` and `epoch` (both counted from 1), `train_loss`,
    `train_accuracy`, `learning_rate` (of the last step), `images_per_second`, and for
    an epoch that was evaluated `test_loss` and `test_accuracy`, with moving averages
    also `test_ema_loss` and `test_ema_accuracy`. Accuracies are fractions.
    """

    def __init__(self, workdir: epath.Path, step: int):
        """Opens the record in `workdir` and keeps the lines up to `step`.

        Raises:
          InputError: if what is there is no record.
        """
        from tensorboardX import SummaryWriter  # slow to import, for those who train

        self._path = workdir / "metrics.jsonl"
        try:
            self.lines = [line for line in read_lines(workdir) if line["step"] <= step]
        except (ValueError, TypeError, LookupError) as error:  # JSON has many ways
            raise InputError(
                f"{self._path} can't be read ({in_one_line(error)}); it must hold the "
                "lines that train.py wrote"
            ) from None
        self._write()
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1 if step else None
        )

    def append(self, line: Line) -> None:
        """Adds an epoch's line; `step` counts the steps done."""
        self.lines.append(line)
        self._write()
        for name, value in line.items():
            if name not in ("step", "epoch"):
                self._events.add_scalar(name, value, line["step"])
        self._events.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._events.close()

    def _write(self):
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_whole(self._path, text)


def read_lines(workdir: epath.Path) -> list[Line]:
    """The lines of a run's record; none where there is no record."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def accuracy_of(metrics: Mapping[str, float]) -> float:
    """The test accuracy: of the averaged weights, if there are any."""
    return metrics.get("test_ema_accuracy", metrics["test_accuracy"])
