"""Pictures from files: whatever their kind, as grey or as colours of 8 bits."""

import collections
import contextlib
import io
import threading
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lrunet_jax.errors import InputError, in_one_line, require
from lrunet_jax.files import is_remote

SIZES = 3  # that an error gives
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class BrokenPictureError(InputError):
    """A picture whose bytes are there, and can't be decoded."""


def find_pictures(directory: epath.Path) -> list[epath.Path]:
    """Finds the pictures directly in a directory, by their suffixes in any case.

    Returns:
      Their paths by name, without hidden ones. A link that leads nowhere is one of
      them, or nobody would miss what it stood for.
    """
    paths = sorted(directory.iterdir(), key=lambda path: path.name)
    pictures = [path for path in paths if path.suffix.lower() in SUFFIXES]
    # In a bucket each question takes a request, and directories are seldom so named.
    is_file = lambda path: is_remote(directory) or not path.is_dir()
    return [
        path for path in pictures if not path.name.startswith(".") and is_file(path)
    ]


def read_picture(path: epath.Path) -> np.ndarray:
    """Reads a picture as it is meant to be seen: rotated by its EXIF, and on white.

    Of several frames it is the first. 16 bits become 8. EXIF that can't be read is as
    none. It may be called by several threads.

    Args:
      path: of a file of any kind that Pillow knows, whatever its suffix; local or
        remote.

    Returns:
      (H, W, 1) uint8 where the file's kind is grey, or a palette of which no colour is
      seen; else (H, W, 3) uint8, even if all pixels are grey.

    Raises:
      BrokenPictureError: if it can't be decoded, is truncated, has floats or more than
        16 bits, or more pixels than Pillow takes for harmless: twice
        `Image.MAX_IMAGE_PIXELS`.
      InputError: if the file can't be read.
    """
    try:
        content = path.read_bytes()
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # remote storage has errors of its own
        raise InputError(_unreadable(path, in_one_line(error))) from None
    try:
        with _UNWARNED:
            return _decode(content)
    except MemoryError:
        raise
    except UnidentifiedImageError:  # which names a BytesIO, by its address
        reason = "it is no picture that Pillow knows" if content else "it is empty"
    except Exception as error:  # each of Pillow's decoders has errors of its own
        reason = in_one_line(error)
    raise BrokenPictureError(_unreadable(path, reason))


def read_size(path: epath.Path) -> tuple[int, int]:
    """Reads height and width, as `read_picture` would find them, without the pixels.

    Raises:
      Exception: of many classes, if the file can't be read or is no picture.
    """
    with _UNWARNED, path.open("rb") as file, Image.open(file) as image:
        turned = False
        with contextlib.suppress(Exception):
            # Not PNG's own: it decodes all pixels, as EXIF may stand behind them.
            exif = Image.Image.getexif(image)
            turned = exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            turned &= image.format != "TIFF"  # whose size is of what it will be
        width, height = image.size
    return (width, height) if turned else (height, width)


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a whole picture bilinearly, as Pillow does: smoothed where it shrinks.

    Args:
      picture: (H, W, channels) uint8, with 1 or 3 channels.
      height: of the result, in pixels.
      width: of the result, in pixels; the ratio of the two may change.

    Returns:
      (height, width, channels) uint8; `picture` itself where it has that size.
    """
    if picture.shape[:2] == (height, width):
        return picture
    image = _image(picture).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, -1)


def with_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """Makes grey of colours, or colours of grey.

    Args:
      picture: (H, W, 1) or (H, W, 3) uint8.
      channels: 1, by the luma of ITU-R 601-2 as Pillow rounds it, or 3, all the same.

    Returns:
      (H, W, channels) uint8; `picture` itself where it has so many.

    Raises:
      InputError: for another number of channels.
    """
    require(channels in (1, 3), "channels", channels, "1 or 3")
    if picture.shape[2] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, axis=2)
    return np.asarray(_image(picture).convert("L"))[..., np.newaxis]


def treated(picture: np.ndarray, size: Sequence[int], channels: int) -> np.ndarray:
    """Resizes a picture to [H, W], unless that is empty, and makes it grey or colour.

    Args:
      picture: (H, W, 1) or (H, W, 3) uint8.
      size: [height, width] of the result; empty for that of the picture.
      channels: of the result; 0 for those of the picture.
    """
    picture = resize(picture, *size) if size else picture
    return with_channels(picture, channels) if channels else picture


def stack(pictures: Iterable[np.ndarray], what: str) -> np.ndarray:
    """Stacks pictures to (n, H, W, channels); of grey and colours all get colours.

    Each is let go when it has been copied: they are the largest part of the memory.

    Raises:
      InputError: if they differ in size, or there are none; `what` begins its line.
    """
    queue = collections.deque(pictures)
    del pictures
    sizes = collections.Counter(picture.shape[:2] for picture in queue)
    if len(sizes) != 1:
        raise InputError(f"{what} {different_sizes(sizes)}")
    channels = max(picture.shape[2] for picture in queue)
    images = np.empty((len(queue), *queue[0].shape[:2], channels), np.uint8)
    for place in range(len(images)):
        images[place] = with_channels(queue.popleft(), channels)
    return images


def different_sizes(counts: collections.Counter[tuple[int, int]]) -> str:
    """The end of a message that sizes differ, with the most frequent ones.

    Args:
      counts: of pictures by (H, W).
    """
    if not counts:
        return "has no images"
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:SIZES]
    phrases = [f"{count} of {height}x{width}" for (height, width), count in frequent]
    others = counts.total() - sum(count for _, count in frequent)
    if others:
        phrases.append(f"{others} of {len(counts) - SIZES} other sizes")
    return (
        f"has images of several sizes: {', '.join(phrases)} (height x width); they "
        "must be resized to one: --config.image_size=S, of other commands "
        "--image_size=S"
    )


class _Unwarned:
    """A context in which Pillow's warnings are not heard, for threads that overlap.

    `warnings.catch_warnings` is for all threads, and puts back what it found. Of two
    that overlap, the later would put back the silence of the earlier; so the first
    begins it here, and the last ends it.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.close()


_UNWARNED = _Unwarned()


def _unreadable(path, reason):
    return f"picture is {str(path)!r:.300}, which can't be read: {reason}"


def _image(picture):
    return Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)


def _decode(content):
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        # In place: what fails behind the rotation does not undo it.
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        is_grey = image.mode in ("1", "L", "LA", "La")
        if image.format == "PNG":
            is_grey |= _mend_png(image, *content[24:26])
        return _pixels(image, is_grey)


def _mend_png(image, bits, kind):
    """Mends what Pillow takes for something else; tells if it is grey and alpha.

    Two or four bits of grey are scaled to eight, and the grey that is transparent is
    not. A PNG of grey and alpha, 16 bits each, is RGBA to Pillow.
    """
    transparent = image.info.get("transparency", 256)
    if kind == 0 and bits in (2, 4) and transparent < 2**bits:
        image.info["transparency"] = transparent * 255 // (2**bits - 1)
    return kind == 4


def _pixels(image, is_grey):
    """The pixels of an image of any mode, (H, W, 1) or (H, W, 3) uint8."""
    if image.mode == "F":
        raise ValueError("its pixels are floats; they must be of 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode in ("P", "PA"):
        pixels = np.asarray(_on_white(image.convert("RGBA")))
        is_grey = (pixels == pixels[..., :1]).all()
        return np.ascontiguousarray(pixels[..., :1]) if is_grey else pixels
    if image.has_transparency_data:
        image = _on_white(image.convert("LA" if is_grey else "RGBA"))
    pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    return pixels[..., np.newaxis] if is_grey else pixels


def _on_white(image):
    """Puts an image of mode LA or RGBA on white: mode L or RGB."""
    opaque = image.convert(image.mode.removesuffix("A"))
    white = Image.new(opaque.mode, image.size, "white")
    white.paste(opaque, mask=image.getchannel("A"))
    return white


def _from_16_bits(image):
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have more than 16 bits; they must have 8 or 16")
    pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if "transparency" in image.info:
        pixels[values == image.info["transparency"]] = 255
    return pixels[..., np.newaxis]
