"""Standard output and error, which may go away while a command runs."""

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast


class OutputError(OSError):
    """Standard output can't be written; the cause says why."""


class _Named:
    """A stream whose failures are known from those of other files."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def _try(self, function, *args):
        try:
            function(*args)
        except OSError as error:
            raise OutputError(str(error)) from error


class _Unbreakable(_Named):
    """A stream that drops what the stream behind it doesn't take."""

    def _try(self, function, *args):
        with contextlib.suppress(OSError, ValueError):  # gone, full, or closed
            function(*args)


@contextlib.contextmanager
def named_output() -> Iterator[None]:
    """A context in which printing to standard output fails with an OutputError alone.

    To standard error it never fails.

    A process that was started with closed streams gets some that lead nowhere:
    otherwise the next file that is opened has their number, and what a library writes
    to standard error goes into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    out, err = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (out, err):
        if isinstance(stream, io.TextIOWrapper):  # of a locale that lacks a character
            stream.reconfigure(errors="backslashreplace")
    try:
        with (
            contextlib.redirect_stdout(cast(TextIO, _Named(out))),
            contextlib.redirect_stderr(cast(TextIO, _Unbreakable(err))),
        ):
            yield
    finally:
        drop_unwritten(out)
        drop_unwritten(err)


@contextlib.contextmanager
def unbreakable_output(*, silent: bool = False) -> Iterator[None]:
    """A context in which printing never fails, to standard output and to error.

    What can't be written, as the reader has gone or the disk is full, is dropped. What
    is printed after a full disk has room again is written.

    Args:
      silent: drop everything.
    """
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(_nowhere())
        out, err = sys.stdout or nowhere, sys.stderr or nowhere
        out, err = (nowhere, nowhere) if silent else (out, err)
        out, err = cast(TextIO, _Unbreakable(out)), cast(TextIO, _Unbreakable(err))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        yield


def drop_unwritten(stream: TextIO) -> None:
    """Sends what a stream holds, and can't write, to nowhere.

    Python would try once more when it ends, complain, and exit with status 120.
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), _nowhere() as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _nowhere() -> TextIO:
    return open(os.devnull, "w")
