"""Signals that ask a run to stop."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """A context in which SIGTERM, SIGINT and SIGHUP are noted, and do nothing else.

    A second one has its usual effect, but for SIGHUP, which a terminal that goes away
    may send several times; where that is ignored, as by `nohup`, it stays so. Outside
    of the main thread, where Python handles no signals, none is noted.

    Yields:
      A function that tells whether one has come.
    """
    received = []
    usual: dict[int, Any] = {}

    def note(number, _):
        received.append(number)
        if number != signal.SIGHUP:  # of which a terminal sends several
            signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                usual[number] = signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for changed, handler in usual.items():
            signal.signal(changed, handler)


def ignore_stop_signals() -> None:
    """Lets a process end in peace that has nothing left to stop."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
