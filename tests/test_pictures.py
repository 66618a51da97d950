"""Pictures of every kind, made with Pillow and read by the package."""

import io
import struct
import threading
import time
import warnings
import zlib
from concurrent import futures

import numpy as np
import pytest
import remote
from etils import epath
from PIL import Image, ImageCms

from lrunet_jax.data import pictures
from lrunet_jax.data.pictures import (
    BrokenPictureError,
    find_pictures,
    read_picture,
    read_size,
    resize,
    with_channels,
)
from lrunet_jax.errors import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 4), np.uint8)
COLOURS = RNG.integers(0, 256, (5, 4, 3), np.uint8)
ALPHA = np.array([[0, 255, 51, 128]] * 5, np.uint8)
TURNED_BY_6 = {0x0112: 6}  # the camera's right side is up: shown, it is turned right


def on_white(values, alpha):
    """What is seen of values (H, W, channels) on white, to the nearest number."""
    share = alpha[..., np.newaxis] / 255
    return np.floor(values * share + 255 * (1 - share) + 0.5)


@pytest.fixture
def written(tmp_path):
    """Writes an image and gives its path."""

    def write(image, name="picture.png", **options):
        image.save(tmp_path / name, **options)
        return epath.Path(tmp_path / name)

    return write


def exif(tags):
    found = Image.Exif()
    found.update(tags)
    return found


def png(width, height, bits, kind, *chunks):
    """A PNG of these chunks, which Pillow would not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(name + content))
        file += struct.pack(">I", len(content)) + name + content + crc
    return file


def refused(path):
    """The reason for which a picture is refused, in one line with its path."""
    with pytest.raises(BrokenPictureError) as caught:
        read_picture(path)
    start, _, reason = str(caught.value).partition(", which can't be read: ")
    assert start == f"picture is {str(path)!r}"
    assert reason
    assert "\n" not in reason
    return reason


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "pgm"])
def test_grey_has_one_channel(suffix, written):
    found = read_picture(written(Image.fromarray(GREY), f"picture.{suffix}"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, GREY[..., np.newaxis])


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_colours_have_three_channels(suffix, written):
    found = read_picture(written(Image.fromarray(COLOURS), f"picture.{suffix}"))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, COLOURS)


def test_colours_that_look_grey_have_three_channels(written):
    grey = np.repeat(GREY[..., np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(read_picture(written(Image.fromarray(grey))), grey)


def test_black_and_white_is_grey(written):
    found = read_picture(written(Image.fromarray(GREY > 99)))
    np.testing.assert_array_equal(found[..., 0], np.where(GREY > 99, 255, 0))


def test_lossless_webp_is_exact(written):
    path = written(Image.fromarray(COLOURS), "picture.webp", lossless=True)
    np.testing.assert_array_equal(read_picture(path), COLOURS)


def test_grey_jpeg_is_grey_and_nearly_the_same(written):
    path = written(Image.new("L", (20, 10), 99), "picture.jpg", quality=95)
    found = read_picture(path)
    assert found.shape == (10, 20, 1)
    assert np.abs(found.astype(int) - 99).max() <= 1


def test_one_pixel_is_a_picture(written):
    found = read_picture(written(Image.new("RGB", (1, 1), (1, 2, 3))))
    np.testing.assert_array_equal(found, [[[1, 2, 3]]])


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_exif_turns_a_picture(suffix, written):
    options = {"lossless": True} if suffix == "webp" else {}
    image = Image.fromarray(COLOURS)
    path = written(image, f"picture.{suffix}", exif=exif(TURNED_BY_6), **options)
    np.testing.assert_array_equal(read_picture(path), np.rot90(COLOURS, -1))
    assert read_size(path) == (4, 5)


def test_exif_turns_a_grey_jpeg(written):
    halves = np.zeros((16, 32), np.uint8)
    halves[:, 16:] = 255
    path = written(Image.fromarray(halves), "picture.jpg", exif=exif(TURNED_BY_6))
    found = read_picture(path)
    assert found.shape == (32, 16, 1)
    assert read_size(path) == (32, 16)
    assert found[:14].max() < 20  # the left half is at the top
    assert found[18:].min() > 235


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_has_its_size(orientation, written):
    path = written(Image.fromarray(GREY), exif=exif({0x0112: orientation}))
    assert read_size(path) == read_picture(path).shape[:2]


def test_exif_that_is_broken_turns_nothing(written):
    path = written(Image.fromarray(COLOURS), exif=b"Exif\0\0no TIFF at all")
    np.testing.assert_array_equal(read_picture(path), COLOURS)
    assert read_size(path) == (5, 4)


def test_colours_and_alpha_are_put_on_white(written):
    found = read_picture(written(Image.fromarray(np.dstack([COLOURS, ALPHA]))))
    np.testing.assert_array_equal(found, on_white(COLOURS, ALPHA))


def test_grey_and_alpha_are_put_on_white_and_stay_grey(written):
    found = read_picture(written(Image.fromarray(np.dstack([GREY, ALPHA]))))
    np.testing.assert_array_equal(found, on_white(GREY[..., np.newaxis], ALPHA))


def test_grey_and_alpha_of_16_bits_are_grey(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">4H", 257 * 9, 65535, 257, 0) for _ in "ab")
    path = epath.Path(tmp_path / "picture.png")
    path.write_bytes(png(2, 2, 16, 4, (b"IDAT", zlib.compress(rows))))
    np.testing.assert_array_equal(read_picture(path), [[[9], [255]]] * 2)


def test_a_transparent_grey_is_white(written):
    path = written(Image.fromarray(GREY), transparency=int(GREY[1, 2]))
    expected = np.where(GREY[1, 2] == GREY, 255, GREY)[..., np.newaxis]
    assert expected[1, 2] != GREY[1, 2]
    np.testing.assert_array_equal(read_picture(path), expected)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_transparent_grey_of_few_bits_is_white(bits, tmp_path):
    path = epath.Path(tmp_path / "picture.png")
    row = zlib.compress(bytes([0, 0b00011011 if bits == 2 else 0x12]))  # a filter first
    transparent = (b"tRNS", struct.pack(">H", 1))
    path.write_bytes(png(2, 1, bits, 0, transparent, (b"IDAT", row)))
    expected = [0, 255] if bits == 2 else [255, 2 * 17]
    np.testing.assert_array_equal(read_picture(path)[0, :, 0], expected)


def test_transparent_black_of_two_is_white(written):
    path = written(Image.fromarray(GREY > 99), transparency=0)
    np.testing.assert_array_equal(read_picture(path), np.full((5, 4, 1), 255))


def test_a_transparent_colour_is_white(written):
    colour = tuple(map(int, COLOURS[1, 2]))
    path = written(Image.fromarray(COLOURS), transparency=colour)
    expected = COLOURS.copy()
    expected[1, 2] = 255
    np.testing.assert_array_equal(read_picture(path), expected)


def palette(colours, indices, **options):
    image = Image.fromarray(np.array(indices, np.uint8))
    image.putpalette([value for colour in colours for value in colour])
    return image


RED, DARK, PALE = (255, 0, 0), (7, 7, 7), (200, 200, 200)


def test_a_palette_of_colours_has_three_channels(written):
    found = read_picture(written(palette([RED, DARK], [[0, 1]])))
    np.testing.assert_array_equal(found, [[RED, DARK]])


def test_a_palette_is_grey_if_the_colours_in_use_are(written):
    found = read_picture(written(palette([RED, DARK, PALE], [[2, 1]])))
    np.testing.assert_array_equal(found, [[[200], [7]]])


def test_a_transparent_colour_of_a_palette_is_white(written):
    image = palette([DARK, RED, PALE], [[0, 1, 2]])
    found = read_picture(written(image, transparency=0))
    np.testing.assert_array_equal(found, [[(255, 255, 255), RED, PALE]])


def test_a_colour_that_is_not_seen_leaves_a_palette_grey(written):
    image = palette([DARK, RED, PALE], [[0, 1, 2]])
    found = read_picture(written(image, transparency=1))
    np.testing.assert_array_equal(found, [[[7], [255], [200]]])


def test_half_transparent_colours_of_a_palette_are_put_on_white(written):
    image = palette([DARK, RED, PALE], [[0, 1, 2]])
    found = read_picture(written(image, transparency=bytes([255, 51, 0])))
    np.testing.assert_array_equal(found, [[DARK, (255, 204, 204), (255, 255, 255)]])


def test_a_palette_with_alpha_is_put_on_white(written):
    image = Image.fromarray(np.dstack([GREY, GREY, GREY, ALPHA])).convert("PA")
    path = written(image, "picture.tiff")
    with Image.open(path) as again:
        assert again.mode == "PA"
    found = read_picture(path)
    np.testing.assert_array_equal(found, on_white(GREY[..., np.newaxis], ALPHA))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_and_rounded(suffix, written):
    values = np.array([[0, 128, 129, 257, 385, 386, 32768, 65407, 65535]], np.uint16)
    found = read_picture(written(Image.fromarray(values), f"picture.{suffix}"))
    np.testing.assert_array_equal(found[..., 0], np.round(values / 257))
    assert found.dtype == np.uint8


def test_16_bits_with_the_high_byte_first_are_scaled(written):
    values = np.array([[0, 257, 65535]], ">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    path = written(image, "picture.tiff")
    with Image.open(path) as again:
        assert again.mode == "I;16B"
    np.testing.assert_array_equal(read_picture(path)[..., 0], [[0, 1, 255]])


def test_16_bits_in_32_are_scaled(tmp_path):
    path = epath.Path(tmp_path / "picture.pgm")
    path.write_bytes(b"P5 3 1 65535 " + struct.pack(">3H", 0, 257, 65535))
    with Image.open(path) as image:
        assert image.mode == "I"
    np.testing.assert_array_equal(read_picture(path)[..., 0], [[0, 1, 255]])


def test_a_transparent_grey_of_16_bits_is_white(written):
    values = np.array([[256, 257, 514]], np.uint16)
    path = written(Image.fromarray(values), transparency=257)
    np.testing.assert_array_equal(read_picture(path)[..., 0], [[1, 255, 2]])


def test_more_than_16_bits_are_refused(written):
    for value in (65536, -1):
        image = Image.fromarray(np.array([[0, value]], np.int32))
        assert "more than 16 bits" in refused(written(image, "picture.tiff"))


def test_floats_are_refused(written):
    image = Image.fromarray(np.ones((2, 2), np.float32))
    assert "floats" in refused(written(image, "picture.tiff"))


def test_a_cmyk_jpeg_has_three_channels(written):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    found = read_picture(written(image, "picture.jpg", quality=95))
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - (0, 255, 255)).max() <= 3


def test_ycbcr_has_three_channels(written):
    image = Image.new("YCbCr", (16, 16), (76, 85, 255))  # red, by JFIF
    found = read_picture(written(image, "picture.tiff"))
    assert np.abs(found.astype(int) - RED).max() <= 2


def test_lab_has_three_channels(written):
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    red = Image.new("RGB", (16, 16), RED)
    image = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    found = read_picture(written(image, "picture.tiff"))
    assert np.abs(found.astype(int) - RED).max() <= 6  # L, a and b have 8 bits


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_several_frames_the_first_is_read(suffix, written):
    frames = [Image.new("RGB", (4, 5), colour) for colour in (RED, PALE, DARK)]
    options = {"lossless": True} if suffix == "webp" else {}
    more = {"save_all": True, "append_images": frames[1:]}
    path = written(frames[0], f"picture.{suffix}", **more, **options)
    np.testing.assert_array_equal(read_picture(path), np.full((5, 4, 3), RED))


def test_the_content_counts_and_not_the_suffix(written):
    path = written(Image.fromarray(COLOURS), "picture.jpg", format="PNG")
    np.testing.assert_array_equal(read_picture(path), COLOURS)


@pytest.mark.parametrize("suffix", pictures.SUFFIXES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_truncated_file_is_refused(suffix, share, written):
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    path = written(Image.fromarray(noise), f"picture{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "0x" not in refused(path)  # no address of an object


def test_a_text_named_png_is_refused(tmp_path):
    path = epath.Path(tmp_path / "notes.png")
    path.write_text("Not a picture.\n" * 9)
    assert refused(path) == "it is no picture that Pillow knows"


def test_an_empty_file_is_refused(tmp_path):
    path = epath.Path(tmp_path / "nothing.png")
    path.write_bytes(b"")
    assert refused(path) == "it is empty"


def test_a_decompression_bomb_is_refused(tmp_path):
    path = epath.Path(tmp_path / "bomb.png")
    path.write_bytes(png(60_000, 60_000, 8, 2, (b"IDAT", zlib.compress(b""))))
    assert "decompression bomb" in refused(path)


def test_a_large_picture_is_no_bomb_and_warns_of_nothing(written, monkeypatch):
    path = written(Image.fromarray(COLOURS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 19)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path):
        pass
    np.testing.assert_array_equal(read_picture(path), COLOURS)
    assert read_size(path) == (5, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    assert "decompression bomb" in refused(path)


def test_warnings_are_heard_again_when_the_last_thread_is_done(tmp_path, monkeypatch):
    both, first_done = threading.Event(), threading.Event()
    heard = []

    def decode(content):  # the first begins first and ends first
        if content == b"first":
            assert both.wait(60)
        else:
            both.set()
            assert first_done.wait(60)
            heard.append(list(warnings.filters))

    monkeypatch.setattr(pictures, "_decode", decode)
    paths = [epath.Path(tmp_path / name) for name in ("first", "second")]
    for path in paths:
        path.write_text(path.name)
    before = list(warnings.filters)
    with futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(read_picture, paths[0])
        while warnings.filters == before:
            time.sleep(0.001)
        second = pool.submit(read_picture, paths[1])
        first.result()
        first_done.set()
        second.result()
    assert len(heard[0]) == len(before) + 1
    assert warnings.filters == before


def test_a_file_that_is_missing_is_no_broken_picture(tmp_path):
    path = epath.Path(tmp_path / "missing.png")
    with pytest.raises(InputError, match=r"missing.png', which can't be.*No such file"):
        read_picture(path)
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert not isinstance(caught.value, BrokenPictureError)


def test_memory_that_fails_is_no_broken_picture(written, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(pictures, "_decode", fail)
    with pytest.raises(MemoryError):
        read_picture(written(Image.fromarray(COLOURS)))


def test_remote_pictures_are_found_and_read(monkeypatch):
    monkeypatch.setattr(remote, "FILES", {})
    content = io.BytesIO()
    Image.fromarray(COLOURS).save(content, "PNG")
    directory = epath.Path("standin://bucket/pictures")
    for name in ("b.png", "a.PNG", "notes.txt"):
        (directory / name).write_bytes(content.getvalue())
    found = find_pictures(directory)
    assert [path.name for path in found] == ["a.PNG", "b.png"]
    np.testing.assert_array_equal(read_picture(found[0]), COLOURS)
    assert read_size(found[0]) == (5, 4)


@pytest.mark.parametrize("size", [(2, 3), (9, 13), (5, 2)])
def test_resizing_is_pillow_s_of_each_channel(size, written):
    height, width = size
    found = resize(COLOURS, height, width)
    assert found.shape == (height, width, 3)
    for channel in range(3):
        plane = Image.fromarray(COLOURS[..., channel])
        expected = plane.resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found[..., channel], expected)
        grey = resize(COLOURS[..., channel : channel + 1], height, width)
        np.testing.assert_array_equal(grey[..., 0], expected)


def test_halving_takes_the_whole_picture():
    # Pillow's triangle over 4 pixels, 1 3 3 1, of which at each edge one is cut off.
    found = resize(np.array([[[0], [0], [70], [70]]], np.uint8), 1, 2)
    np.testing.assert_array_equal(found, [[[10], [60]]])


def test_a_picture_of_the_right_size_is_itself():
    assert resize(COLOURS, 5, 4) is COLOURS
    grey = GREY[..., np.newaxis]
    assert with_channels(COLOURS, 3) is COLOURS
    assert with_channels(grey, 1) is grey


def test_grey_becomes_three_times_the_same():
    found = with_channels(GREY[..., np.newaxis], 3)
    np.testing.assert_array_equal(found, np.dstack([GREY] * 3))


def test_colours_become_their_luma():
    found = with_channels(COLOURS, 1)
    luma = COLOURS @ (0.299, 0.587, 0.114)
    assert found.shape == (5, 4, 1)
    assert np.abs(found[..., 0] - luma).max() <= 0.51  # rounded
    np.testing.assert_array_equal(found[..., 0], Image.fromarray(COLOURS).convert("L"))


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(InputError, match="channels is 2; it must be 1 or 3"):
        with_channels(COLOURS, 2)


def test_pictures_are_found_by_suffix_in_any_case_and_by_name(tmp_path):
    names = ["c.webp", "B.JPG", "a.jpeg", "d.Bmp", "e.png"]
    for name in [*names, ".hidden.png", "._a.jpeg", "notes.txt", "png", "f.gif"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "directory.png").mkdir()
    (tmp_path / "directory.png" / "below.png").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = find_pictures(epath.Path(tmp_path))
    assert [path.name for path in found] == sorted([*names, "gone.png"])
