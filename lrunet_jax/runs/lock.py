"""The lock of a workdir: one run has one writer."""

import contextlib
import datetime
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

from etils import epath

from lrunet_jax.errors import InputError
from lrunet_jax.files import is_remote, write_whole

SECONDS_TO_APPEAR = 10.0  # of a file on a disk that is shared by hosts


@contextlib.contextmanager
def locked(path: epath.Path, *, sign: bool) -> Iterator[Callable[[], bool]]:
    """A context that holds the lock on a file, which is made if it is missing.

    The lock is the system's, and ends with its process, however that ends; the file
    stays. On remote storage, and on a file system without locks, nothing is held: of
    two writers the later one signs, and the earlier one sees that it is not there any
    more.

    Args:
      path: of the file.
      sign: whether to write into it who holds it.

    Yields:
      A function that tells whether the file is still there, and the same.

    Raises:
      InputError: if another process, or another call in this one, holds it.
      OSError: if the file can't be opened.
    """
    since = datetime.datetime.now().isoformat(" ")
    signature = f"process {os.getpid()} on {socket.gethostname()}, since {since},\n"
    if is_remote(path):
        if sign:
            write_whole(path, signature)
            print(f"not locked: {path.parent} is on remote storage, without locks")
        yield lambda: is_signed(path, signature)
        return
    import fcntl  # which Windows has not

    with open(path, "a+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                holder = " ".join(file.read(200).split()) or "another process"
                raise InputError(
                    f"workdir is {str(path.parent)!r}, in which {holder} trains; give "
                    "another --workdir, or wait for its end"
                ) from None
            print(f"not locked: {path.parent} is on a file system without locks")
        if sign:
            file.truncate(0)
            file.write(signature)
            file.flush()

        def is_there():
            try:
                return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
            except FileNotFoundError:
                return False
            except OSError:  # not known; writing will tell
                return True

        yield is_there


def is_signed(path: epath.Path, signature: str) -> bool:
    """Tells whether a lock's file is there with this content, as far as is known."""
    try:
        return path.read_text() == signature
    except FileNotFoundError:
        return False
    except Exception:  # remote storage has errors of its own; writing will tell
        return True


def require_signed(path: epath.Path, signature: str) -> None:
    """Waits until a lock's file, which another process has signed, is seen here too.

    Raises:
      InputError: if it is not.
    """
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not is_signed(path, signature):
        if time.monotonic() > deadline:
            raise InputError(
                f"workdir is {str(path.parent)!r}, which is not the same directory on "
                f"{socket.gethostname()} as for the first process; it must be one that "
                "all hosts share"
            )
        time.sleep(0.2)
