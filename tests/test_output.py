"""Output that can't be written: it stops no training, and is said by the rest."""

import errno
import io
import os
import subprocess
import sys

import pytest
from conftest import ROOT, process
from test_loop import arguments, log_of

from lrunet_jax.output import OutputError, named_output, unbreakable_output

# Three steps in an epoch, all of one size: one program.
QUICK = ("--config.batch_size=479",)
TABLE = ("-m", "lrunet_jax.results", "docs/cifar10-lru1-paper")


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_printing_in_a_run_never_fails(error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(error))
    monkeypatch.setattr(sys, "stderr", Broken(error))
    with unbreakable_output():
        print("a line", flush=True)
        print("another", file=sys.stderr, flush=True)


def test_what_can_be_written_is(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", None)
    with unbreakable_output():
        print("a line")
        print("nowhere", file=sys.stderr)
        assert not sys.stderr.isatty()
    assert out.getvalue() == "a line\n"


def test_errors_of_standard_output_are_known_from_others(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(OSError(errno.EPIPE, "Broken pipe")))
    with named_output(), pytest.raises(OutputError):
        print("a line")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gone", "buffered"), [("pipe", "1"), ("full", ""), ("closed", "")]
)
def test_a_run_without_its_output_trains_on(gone, buffered, tmp_path):
    command = [sys.executable, *arguments(tmp_path / "run", *QUICK)]
    shell = {
        "pipe": '"$@" | true; exit ${PIPESTATUS[0]}',
        "full": '"$@" > /dev/full 2> /dev/full',
        "closed": '"$@" >&- 2>&-',
    }[gone]
    environment = os.environ | {"PYTHONUNBUFFERED": buffered}
    result = subprocess.run(
        ["bash", "-c", shell, "bash", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert [line["epoch"] for line in log_of(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "checkpoints" / "6" / "state").is_dir()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_device_is_one_line_and_no_success(buffered):
    environment = os.environ | {"PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:
        streams = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        result = process(*TABLE, env=environment, **streams)
    assert result.returncode == 1
    assert result.stderr.startswith("error: standard output can't be written: ")
    assert result.stderr.count("\n") == 1


def test_a_mistake_has_its_status_where_it_cannot_be_said():
    with open("/dev/full", "w") as full:
        streams = {"capture_output": False, "stdout": full, "stderr": full}
        result = process("-m", "lrunet_jax.results", "nowhere", **streams)
    assert result.returncode == 2
