"""The record of a run: JSON lines and TensorBoard events, one entry an epoch."""

import json
from collections.abc import Mapping, Sequence
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

    With held out images these are `validation_loss` and so on, and the last epoch has
    the test set's as well, and those of the best epoch on the held out images:
    `best_epoch`, `best_test_loss`, `best_test_accuracy`.
    """

    def __init__(
        self, workdir: epath.Path, step: int, lines: Sequence[Line] | None = None
    ):
        """Opens the record in `workdir`.

        Args:
          workdir: of the run.
          step: the lines up to it are kept.
          lines: these lines, as the run's checkpoint has them: a file that is damaged
            is mended. None for those in the file.

        Raises:
          InputError: if the file is damaged and `lines` is None.
          OSError: if it can't be read or written.
        """
        from lrunet_jax.runs.events import Events  # slow to import, for those who train

        self._path = workdir / "metrics.jsonl"
        self.lines = list(lines or ())
        try:
            found = [line for line in read_lines(workdir) if line["step"] <= step]
            if lines is None:
                self.lines = found
            elif json.dumps(found) != json.dumps(self.lines[: len(found)]):
                raise InputError(f"{self._path} differs from the checkpoint's record")
        except InputError as error:
            if lines is None:
                raise
            print(f"{error}; it is written anew from the checkpoint")
        self._write()
        self._events = Events(workdir / "tensorboard", step)

    def append(self, line: Line) -> None:
        """Adds an epoch's line; `step` counts the steps done.

        Raises:
          OSError: if it can't be written.
        """
        self.lines.append(line)
        self._write()
        values = {name: line[name] for name in line if name not in ("step", "epoch")}
        self._events.append(line["step"], values)

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._events.close()

    def _write(self):
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_whole(self._path, text)


def read_lines(workdir: epath.Path) -> list[Line]:
    """The lines of a run's record; none where there is no record.

    Raises:
      InputError: that names the first line that train.py has not written.
      OSError: if the file can't be read.
    """
    path = workdir / "metrics.jsonl"
    lines: list[Line] = []
    content = path.read_bytes() if path.exists() else b""
    for number, text in enumerate(content.splitlines(), start=1):
        try:
            line = json.loads(text)
            require_lines([*lines[-1:], line])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise InputError(
                f"{path}, line {number}, can't be read ({in_one_line(error)}); it must "
                "be as train.py wrote it"
            ) from None
        lines.append(line)
    return lines


def require_lines(lines: list[Line]) -> None:
    """Checks that lines are as `Record` writes them, one after the other.

    Raises:
      ValueError, TypeError or LookupError: that says what the first wrong one is.
    """
    if not isinstance(lines, list):
        raise TypeError(f"lines are a {type(lines).__name__}")
    before = -1
    for line in lines:
        numbers = dict(line)
        for name in ("step", "epoch"):
            if type(numbers.pop(name)) is not int:
                raise ValueError(f"{name} is {line[name]!r:.90}, and no integer")
        for name in {"train_loss", "train_accuracy", *numbers}:
            if type(numbers[name]) not in (int, float):
                raise ValueError(f"{name} is {line[name]!r:.90}, and no number")
        if line["step"] <= before:
            raise ValueError(f"step {line['step']} comes after step {before}")
        before = line["step"]


def accuracy_of(metrics: Mapping[str, float]) -> float:
    """The accuracy that the best epoch is chosen by, see `chosen_on`.

    Raises:
      KeyError: if there is none.
    """
    return value_on(chosen_on(metrics), "accuracy", metrics)


def chosen_on(metrics: Mapping[str, float]) -> str:
    """The split that the best epoch is chosen on: `validation`, without it `test`."""
    return "validation" if "validation_accuracy" in metrics else "test"


def value_on(split: str, name: str, metrics: Mapping[str, float]) -> float:
    """The value on a split, of the averaged weights if there are any.

    Args:
      split: `validation`, `test`, or `best_test` for that of the best epoch.
      name: `loss` or `accuracy`.
      metrics: of an epoch.

    Raises:
      KeyError: if there is none.
    """
    return metrics.get(f"{split}_ema_{name}", metrics[f"{split}_{name}"])


def is_evaluated(metrics: Mapping[str, float]) -> bool:
    """Tells whether there is an accuracy, see `accuracy_of`."""
    return f"{chosen_on(metrics)}_accuracy" in metrics
