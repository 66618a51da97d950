"""Says what a trained network takes pictures for.

    python -m lrunet_jax.predict NETWORK IMAGES...

NETWORK is what `lrunet_jax.evaluate` takes. IMAGES are files, directories, whose
pictures are taken in the order of their names, or `-` for a list of them on standard
input, one a line.
"""

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from lrunet_jax.cli import ArgumentParser, json_number, run
from lrunet_jax.data import pictures
from lrunet_jax.data.info import MAX_SIDE
from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.figures.files import figure_path, written_to
from lrunet_jax.figures.sheets import plot_pictures
from lrunet_jax.files import find_path
from lrunet_jax.train.prediction import classify
from lrunet_jax.weights.loading import open_model
from lrunet_jax.weights.stored_model import StoredModel

_BATCH = 64  # pictures at a time
_DRAWN, _THUMBNAIL = 48, 160  # pictures on a sheet, and the pixels of their longer side

_Found = tuple[str, epath.Path | InputError]  # what to call it, where it is or why not
_Seen = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Reads the arguments, and prints the predictions."""
    parser = ArgumentParser(
        prog="python -m lrunet_jax.predict", description=__doc__.splitlines()[0]
    )
    parser.add_argument("network", help="as of lrunet_jax.evaluate")
    parser.add_argument(
        "images", nargs="+", help="files, directories, or - for a list on stdin"
    )
    parser.add_argument("--step", type=int, help="of a run; by default the best")
    parser.add_argument("--top", type=int, default=5, help="classes of each picture")
    parser.add_argument(
        "--image_size", type=int, help="by default that of the images it learned from"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    parser.add_argument("--plot", metavar="FILE", help="a sheet of the pictures")
    args = parser.parse_args()
    require(args.top >= 1, "top", args.top, "at least 1")
    size = args.image_size
    is_side = size is None or 1 <= size <= MAX_SIDE
    require(is_side, "image_size", size, f"in [1, {MAX_SIDE}]")
    sheet = None if args.plot is None else figure_path("plot", args.plot)
    stored = open_model(args.network, args.step)
    height, width = _image_size(stored, size)
    names = stored.class_names or [*map(str, range(stored.arguments["num_classes"]))]
    found = [image for given in args.images for image in _find(given)]
    rows: list[dict[str, Any]] = []
    drawn: list[np.ndarray] = []
    captions: list[str] = []
    failed = 0
    for path, answer in _predict(stored, height, width, found):
        if isinstance(answer, InputError):
            if len(found) == 1:
                raise answer
            print(answer, file=sys.stderr)
            failed += 1
            continue
        small, shares = answer
        top = np.argsort(-shares, kind="stable")[: args.top]
        said = [f"{names[label]} {shares[label]:.1%}" for label in top]
        if args.json:
            rows.append(_row(path, top, names, shares))
        else:
            print(f"{path}  {', '.join(said)}")
        if sheet is not None and len(drawn) < _DRAWN:
            drawn.append(small)
            captions.append("\n".join([os.path.basename(path), *said[:3]]))
    if args.json:
        print(json.dumps(rows))
    if sheet is not None and drawn:
        with written_to("plot", args.plot):
            plot_pictures(drawn, captions, sheet)
        read = len(found) - failed
        if read > _DRAWN:
            first = f"the first {_DRAWN} of {read} pictures"
            print(f"{args.plot} has {first}", file=sys.stderr)
    if failed:
        raise InputError(f"{failed} of {len(found)} pictures can't be read, see above")


def _image_size(stored: StoredModel, given: int | None) -> tuple[int, int]:
    if given is not None:
        return given, given
    if not stored.image_size:
        raise InputError(
            f"{stored.name} does not say how large the images were that it learned "
            "from; give their height and width with --image_size=S"
        )
    height, width = stored.image_size
    return height, width


def _find(given: str) -> list[_Found]:
    """The pictures of an argument."""
    if given == "-":
        return [image for line in _lines() for image in _find_in(line)]
    return _find_in(given)


def _lines():
    if isinstance(sys.stdin, io.TextIOWrapper):  # as arguments are, in any encoding
        sys.stdin.reconfigure(errors="surrogateescape")
    lines = [line.rstrip("\r\n") for line in sys.stdin or ()]
    return [line for line in lines if line]


def _find_in(given: str) -> list[_Found]:
    try:
        place = find_path("picture", given)
        if not place.is_dir():
            return [(given, place)]
        found = pictures.find_pictures(place)
    except InputError as error:
        return [(given, error)]
    except OSError as error:
        reason = f"which can't be read: {in_one_line(error)}"
        return [(given, InputError(f"picture is {given!r}, {reason}"))]
    if not found:
        suffixes = ", ".join(pictures.SUFFIXES)
        reason = f"a directory with none directly in it ({suffixes})"
        return [(given, InputError(f"picture is {given!r}, {reason}"))]
    return [(os.path.join(given, path.relative_to(place)), path) for path in found]


def _predict(
    stored: StoredModel, height: int, width: int, found: Sequence[_Found]
) -> Iterator[tuple[str, _Seen | InputError]]:
    """Yields what each picture is called, with a small copy and its probabilities."""
    model, variables = stored.create_model(), jax.device_put(stored.variables)
    # All batches are of one shape, so that there is one program.
    shape = (min(_BATCH, len(found)), height, width, stored.channels)
    for start in range(0, len(found), _BATCH):
        part = found[start : start + _BATCH]
        opened = [_open(place, *shape[1:]) for _, place in part]
        images, count = np.zeros(shape, np.uint8), 0
        for one in opened:
            if not isinstance(one, InputError):
                images[count] = one[1]
                count += 1
        answers = iter(classify(model, variables, images) if count else ())
        for (path, _), one in zip(part, opened, strict=True):
            yield path, one if isinstance(one, InputError) else (one[0], next(answers))


def _open(
    place: epath.Path | InputError, height: int, width: int, channels: int
) -> tuple[np.ndarray, np.ndarray] | InputError:
    """A small copy of a picture, and what a network of such images is shown."""
    if isinstance(place, InputError):
        return place
    try:
        picture = pictures.read_picture(place)
    except InputError as error:
        return error
    return _thumbnail(picture), pictures.treated(picture, (height, width), channels)


def _thumbnail(picture: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    scale = min(1, _THUMBNAIL / max(height, width))
    smaller = [max(1, round(scale * side)) for side in (height, width)]
    return pictures.resize(picture, *smaller)


def _row(path, top, names, shares):
    listed = [
        {
            "class": names[label],
            "label": int(label),
            "probability": json_number(shares[label]),
        }
        for label in top
    ]
    return {"path": path, "predictions": listed}


if __name__ == "__main__":
    run(main)
