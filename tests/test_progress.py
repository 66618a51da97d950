"""The progress of an epoch: a bar in a terminal, lines elsewhere."""

import io
import sys
import time
import types

import numpy as np
import pytest

from lrunet_jax.train import progress
from lrunet_jax.train.state import Metrics


def metrics(count):
    """Of `count` images, each with a loss of 0.5, three quarters of them right."""
    return Metrics(np.float32(count / 2), np.int32(count * 3 // 4), np.int32(count))


@pytest.fixture
def clock(monkeypatch):
    seconds = [100.0]
    clock = types.SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr(progress, "time", clock)
    return seconds


def test_without_a_terminal_there_is_a_line_now_and_then(clock, capsys):
    shown = progress.Progress(2, 3, metrics(400), num_images=2000)
    lines = []
    for passed, done in ((20, 800), (31, 1020), (50, 1400), (62, 1640), (70, 1800)):
        clock[0] = 100.0 + passed
        shown.update(metrics(done))
        lines.append(capsys.readouterr().out)
    shown.close()
    means = "loss 0.5000, accuracy 75.00%, 20 images/s"
    # 20 images a second, of which those of the epoch's start are not.
    assert lines == [
        "",
        f"epoch 2/3: 1,020/2,000, {means}, 2:29 left\n",
        "",
        f"epoch 2/3: 1,640/2,000, {means}, 1:58 left\n",
        "",
    ]
    assert shown.images_per_second == 20


def test_in_a_terminal_there_is_a_bar(clock, capsys, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = progress.Progress(1, 1, metrics(0), num_images=1000)
    time.sleep(0.2)  # the bar is drawn ten times a second
    clock[0] += 40
    shown.update(metrics(400))
    shown.close()
    assert "epoch 1/1  40%|" in terminal.getvalue()
    assert "loss 0.5000, accuracy 75.00%, 10 images/s, 1:00 left" in terminal.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")],
)
def test_durations_are_read_as_on_a_clock(seconds, text):
    assert progress.duration(seconds) == text
