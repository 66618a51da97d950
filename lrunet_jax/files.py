"""Files, here and on remote storage."""

import contextlib
import os
import uuid
from collections.abc import Iterator

import fsspec.config
from etils import epath

from lrunet_jax.errors import InputError, in_one_line


def find_path(field: str, path: str | os.PathLike) -> epath.Path:
    """The path of a file or directory, which need not be there.

    A local one is made absolute, with `~` for the home directory; a remote one, like
    `gs://bucket/run`, stays as it is.

    Args:
      field: what the path was given as, for the message.
      path: local, or with the scheme of a storage.

    Raises:
      InputError: if it can't be used: no library here knows its scheme, or finds the
        storage.
    """
    try:
        if not is_remote(path):
            return epath.Path(path).expanduser().resolve()
        # Or what TensorStore writes is not seen where a directory was listed before.
        for library in ("gcs", "s3"):
            fsspec.config.conf.setdefault(library, {})["use_listings_cache"] = False
        found = epath.Path(path)
        found.exists()  # asks the scheme's library
    except Exception as error:  # each library has errors of its own
        reason = in_one_line(error)
        if isinstance(error, KeyError):  # of etils, which names the scheme alone
            reason = "no library knows its scheme; gs:// and s3:// are known"
        elif isinstance(error, ImportError) and os.fspath(path).startswith("gs://"):
            reason = "its library is missing: pip install 'lrunet_jax[gcs]'"
        raise InputError(
            f"{field} is {str(path)!r:.300}, which can't be used: {reason}"
        ) from None
    return found


def is_remote(path: str | os.PathLike) -> bool:
    """Tells whether a path has a scheme, like `gs://`."""
    return "://" in os.fspath(path)


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file, so that a crash leaves the old content or the new.

    The content is written beside `path` first, under a name that nobody else has. On
    remote storage files appear whole by themselves.

    Raises:
      OSError: if it can't be written; no part of it is left then.
    """
    target = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    if is_remote(target):
        target.write_bytes(content)
        return
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        part.write_bytes(content)
        part.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """A context that one process of this machine is in; others wait.

    Args:
      path: of a local file, which is made if it is missing. Where that or a lock on it
        can't be had, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):
            import fcntl  # which Windows has not

            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = stack.enter_context(open(path, "a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
