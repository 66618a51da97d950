"""Local files that appear whole or not at all."""

import os
import pathlib


def write_whole_file(path: pathlib.Path, content: bytes) -> None:
    """Writes `content` beside `path` first, where no neighbour's file is touched.

    Raises:
      OSError: if it can't be written; nothing of it is left then.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(part, "xb") as target:
        try:
            target.write(content)
            part.replace(path)
        except OSError:
            part.unlink()
            raise
