"""The lock of a workdir: one run has one writer."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator

from etils import epath

from lrunet_jax.errors import InputError


@contextlib.contextmanager
def locked(path: epath.Path, *, sign: bool) -> Iterator[Callable[[], bool]]:
    """A context that holds the lock on a file, which is made if it is missing.

    The lock is the system's, and ends with its process, however that ends; the file
    stays. On a file system without locks nothing is held.

    Args:
      path: of the file.
      sign: whether to write into it who holds it.

    Yields:
      A function that tells whether the file is still there, and the same.

    Raises:
      InputError: if another process, or another call in this one, holds it.
      OSError: if the file can't be opened.
    """
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
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()

        def is_there():
            return path.exists() and os.path.samestat(
                os.stat(path), os.fstat(file.fileno())
            )

        yield is_there
