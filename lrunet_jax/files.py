"""Files that appear whole or not at all."""

import contextlib
import os
import uuid

from etils import epath


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file, so that a crash leaves the old content or the new.

    The content is written beside `path` first, under a name that nobody else has.

    Raises:
      OSError: if it can't be written; no part of it is left then.
    """
    target = epath.Path(path)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
