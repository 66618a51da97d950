"""The lock of a workdir: one run has one writer."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator

from etils import epath

from lrunet_jax.errors import InputError


@contextlib.contextmanager
def locked(path: epath.Path, *, sign: bool) -> Iterator[None]:
    """A context that holds the lock on a file, which is made if it is missing.

    The lock is the system's, and ends with its process, however that ends; the file
    stays. On a file system without locks nothing is held.

    Args:
      path: of the file.
      sign: whether to write into it who holds it.

    Raises:
      InputError: if another process, or another call in this one, holds it.
      OSError: if the file can't be opened.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise InputError(
                f"workdir is {str(path.parent)!r}, in which {holder} trains; give "
                "another --workdir, or wait for its end"
            ) from None
        except OSError:  # not every network has locks
            yield
            return
        if sign:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
