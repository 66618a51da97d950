"""Figures: made, and written to files here and on remote storage."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from etils import epath

from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.files import find_path, is_remote

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure

FORMATS = (".pdf", ".png", ".svg")


def figure_path(field: str, path: str) -> epath.Path:
    """The path of a figure that is to be written.

    Args:
      field: what the path was given as, for the message.
      path: with one of `FORMATS`; local, or with the scheme of a storage.

    Raises:
      InputError: for another suffix, and as `find_path`.
    """
    found = find_path(field, path)
    allowed = f"a file name with {', '.join(FORMATS)}"
    require(found.suffix in FORMATS, field, path, allowed)
    is_there = is_remote(found) or found.parent.is_dir()
    require(is_there, field, path, "in a directory that is there")
    return found


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: epath.Path) -> None:
    """Writes a figure; the suffix of `path` is the format's."""
    with io.BytesIO() as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=150)
        path.write_bytes(file.getvalue())


@contextlib.contextmanager
def written_to(field: str, path: str) -> Iterator[None]:
    """A context in which a figure that can't be written is an InputError.

    Args:
      field: what the path was given as, for the message.
      path: of the figure, as it was given.
    """
    try:
        yield
    except Exception as error:  # remote storage has errors of its own
        raise InputError(
            f"{field} is {path!r}, which can't be written: {in_one_line(error)}"
        ) from None


def as_text(label: str) -> str:
    """Escapes a label: Matplotlib reads `$` as mathematics and hides a leading `_`."""
    text = label.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
