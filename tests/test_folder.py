"""Labelled pictures in a directory: layouts, errors and the arrays made of them."""

import io
import re

import numpy as np
import pytest
import remote
from etils import epath
from PIL import Image

from lrunet_jax.data import folder
from lrunet_jax.data.folder import decode_folder, list_folder
from lrunet_jax.data.pictures import read_picture, resize, with_channels
from lrunet_jax.errors import InputError


@pytest.fixture
def tree(tmp_path):
    """Writes pictures, by default of 4x4 grey pixels; their directory."""

    def write(*names, image=None):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            (image or Image.new("L", (4, 4), 99)).save(path)
        return epath.Path(tmp_path)

    return write


def names_of(found, split):
    return [f"{path.parent.name}/{path.name}" for path in found.files[split]]


def refusal(directory):
    """What an error says of a directory, in one line, and what it must be."""
    with pytest.raises(InputError) as caught:
        list_folder(directory)
    pattern = rf"data_dir is {re.escape(repr(str(directory)))}, (.*); it must (.*)"
    match = re.fullmatch(pattern, str(caught.value))
    assert match, caught.value
    return match.groups()


def test_classes_alone_are_to_train_on(tree):
    found = list_folder(tree("dog/2.png", "dog/10.png", "cat/x.jpg"))
    assert found.class_names == ("cat", "dog")
    assert names_of(found, "train") == ["cat/x.jpg", "dog/10.png", "dog/2.png"]
    assert found.labels["train"].dtype == np.int32
    np.testing.assert_array_equal(found.labels["train"], [0, 1, 1])
    assert found.files.keys() == found.labels.keys() == {"train"}


def test_train_and_test_share_their_labels(tree):
    found = list_folder(tree(*(f"train/{c}/1.png" for c in "bca"), "test/c/1.png"))
    assert found.class_names == ("a", "b", "c")
    assert names_of(found, "test") == ["c/1.png"]
    np.testing.assert_array_equal(found.labels["train"], [0, 1, 2])
    np.testing.assert_array_equal(found.labels["test"], [2])
    assert found.labels["test"].dtype == np.int32


def test_a_test_is_not_needed(tree):
    found = list_folder(tree("train/a/1.png", "train/b/1.png"))
    assert found.files.keys() == {"train"}


def test_a_class_may_be_called_train_or_test(tree):
    found = list_folder(tree("train/1.png", "car/1.png", "test/1.png"))
    assert found.class_names == ("car", "test", "train")


def test_other_files_and_hidden_directories_are_ignored(tree):
    tree("a/1.png", "b/1.png", "b/.2.png", ".hidden/1.png", "__MACOSX/1.png", "c.png")
    directory = tree("a/below/1.png")
    (directory / "a" / "notes.txt").write_text("")
    (directory / "b" / "1.gif").write_text("")
    found = list_folder(directory)
    assert found.class_names == ("a", "b")
    assert names_of(found, "train") == ["a/1.png", "b/1.png"]


def test_what_is_beside_train_is_ignored(tree):
    found = list_folder(tree("train/a/1.png", "train/b/1.png", "val/c/1.png"))
    assert found.class_names == ("a", "b")


def test_a_missing_directory_is_refused(tree):
    found, needed = refusal(tree() / "missing")
    assert (found, needed) == ("which is not there", "be a directory of pictures")


def test_a_file_is_no_directory(tree):
    assert refusal(tree("a.png") / "a.png")[0] == "which is not there"


def test_fewer_than_two_classes_are_refused(tree):
    assert refusal(tree())[0] == "which has no classes"
    found, needed = refusal(tree("only/1.png"))
    assert found == "which has only the class 'only'"
    assert "two or more directories CLASS," in needed


def test_pictures_without_classes_are_refused(tree):
    found, needed = refusal(tree("train/1.png", "test/1.png"))
    assert found == "which has no classes"
    assert "directories train/CLASS," in needed


def test_a_class_without_pictures_is_refused(tree):
    directory = tree("train/a/1.png", "train/c/1.png")
    (directory / "train" / "b").mkdir()
    found, needed = refusal(directory)
    assert found == "whose class 'b' has no pictures"
    assert needed == "have some in each train/CLASS: .bmp .jpeg .jpg .png .webp"


def test_a_class_of_test_alone_is_refused(tree):
    directory = tree("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/d/1.png")
    assert refusal(directory)[0] == "whose test has a class 'd' that train has not"


def test_a_test_without_pictures_is_refused(tree):
    directory = tree("train/a/1.png", "train/b/1.png", "test/1.png")
    assert refusal(directory)[0] == "whose test has no pictures"
    (directory / "test" / "a").mkdir()
    assert refusal(directory)[0] == "whose test has no pictures"


def test_a_remote_folder_is_listed_and_decoded(monkeypatch):
    monkeypatch.setattr(remote, "FILES", {})
    content = io.BytesIO()
    Image.new("L", (4, 4), 99).save(content, "PNG")
    directory = epath.Path("standin://bucket/pictures")
    for name in ("train/b/1.png", "train/a/1.png", "test/b/1.png"):
        (directory / name).write_bytes(content.getvalue())
    found = list_folder(directory)
    assert found.class_names == ("a", "b")
    files, labels = found.files["train"], found.labels["train"]
    images, labels, _ = decode_folder(files, labels, (), False)
    np.testing.assert_array_equal(images, np.full((2, 4, 4, 1), 99))
    np.testing.assert_array_equal(labels, [0, 1])


def some_pictures(tree, shapes):
    """Pictures of random pixels with these shapes, and labels."""
    rng = np.random.default_rng(0)
    files = []
    for place, shape in enumerate(shapes):
        pixels = rng.integers(0, 256, shape, np.uint8)
        name = f"a/{place:03}.png"
        files.append(tree(name, image=Image.fromarray(pixels)) / name)
    return files, np.arange(len(files), dtype=np.int32)


def test_pictures_are_decoded_in_their_order(tree):
    files, labels = some_pictures(tree, [(6, 5)] * 40)
    images, kept, broken = decode_folder(files, labels, (), False)
    assert images.shape == (40, 6, 5, 1)
    assert images.dtype == np.uint8
    assert broken == []
    np.testing.assert_array_equal(kept, labels)
    np.testing.assert_array_equal(images, [read_picture(path) for path in files])


def test_every_picture_is_resized(tree):
    files, labels = some_pictures(tree, [(6, 5, 3), (8, 8, 3), (3, 30, 3)])
    images, _, _ = decode_folder(files, labels, (8, 8), False)
    expected = [resize(read_picture(path), 8, 8) for path in files]
    np.testing.assert_array_equal(images, expected)


def test_one_picture_of_colours_makes_all_of_them_colours(tree):
    files, labels = some_pictures(tree, [(6, 6), (6, 6, 3), (6, 6)])
    images, _, _ = decode_folder(files, labels, (), False)
    expected = [with_channels(read_picture(path), 3) for path in files]
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_be_asked_for(channels, tree):
    files, labels = some_pictures(tree, [(6, 6), (7, 6, 3)])
    images, _, _ = decode_folder(files, labels, (4, 4), False, channels)
    expected = [
        with_channels(resize(read_picture(path), 4, 4), channels) for path in files
    ]
    np.testing.assert_array_equal(images, expected)


def test_different_sizes_are_named_with_their_counts(tree):
    shapes = [(6, 5)] * 2 + [(7, 5)] * 4 + [(6, 4)] * 3 + [(9, 9), (8, 8), (1, 1)]
    files, labels = some_pictures(tree, shapes)
    with pytest.raises(InputError) as caught:
        decode_folder(files, labels, (), False)
    assert str(caught.value) == (
        "folder has images of several sizes: 4 of 7x5, 3 of 6x4, 2 of 6x5, 3 of 3 "
        "other sizes (height x width); they must be resized to one: "
        "--config.image_size=S, of other commands --image_size=S"
    )


def test_sizes_count_without_what_is_broken(tree):
    files, labels = some_pictures(tree, [(6, 5), (7, 5), (6, 5)])
    files[2].write_text("no picture")
    with pytest.raises(InputError, match=r"several sizes: 1 of 6x5, 1 of 7x5 \("):
        decode_folder(files, labels, (), True)


def test_reading_ends_where_sizes_differ(tree, monkeypatch):
    files, labels = some_pictures(tree, [(6, 5), (7, 5)] + [(6, 5)] * 400)
    read = []
    reader = lambda path: (read.append(path), read_picture(path))[1]
    monkeypatch.setattr(folder, "read_picture", reader)
    with pytest.raises(InputError, match="401 of 6x5, 1 of 7x5"):
        decode_folder(files, labels, (), False)
    assert len(read) <= 2 + folder.AHEAD


def broken_at(tree, *places):
    files, labels = some_pictures(tree, [(6, 6)] * 5)
    for place in places:
        files[place].write_text("no picture")
    return files, labels


def test_the_first_broken_file_is_named_and_refused(tree):
    files, labels = broken_at(tree, 1, 3)
    with pytest.raises(InputError) as caught:
        decode_folder(files, labels, (), False)
    assert str(caught.value) == (
        f"picture is {str(files[1])!r}, which can't be read: it is no picture that "
        "Pillow knows; --config.skip_broken leaves such files out"
    )


def test_broken_files_are_skipped_and_told(tree):
    files, labels = broken_at(tree, 0, 3)
    images, kept, broken = decode_folder(files, labels, (4, 4), True)
    assert broken == [files[0], files[3]]
    np.testing.assert_array_equal(kept, [1, 2, 4])
    assert kept.dtype == np.int32
    expected = [resize(read_picture(files[place]), 4, 4) for place in kept]
    np.testing.assert_array_equal(images, expected)


def test_a_file_that_is_missing_is_not_skipped(tree):
    files, labels = broken_at(tree)
    files[2].unlink()
    with pytest.raises(InputError, match="No such file") as caught:
        decode_folder(files, labels, (), True)
    assert "skip_broken" not in str(caught.value)


def test_nothing_but_broken_files_is_refused(tree):
    files, labels = broken_at(tree, *range(5))
    with pytest.raises(InputError) as caught:
        decode_folder(files, labels, (), True)
    assert str(caught.value) == (
        f"none of 5 pictures can be read; of the first: picture is {str(files[0])!r}, "
        "which can't be read: it is no picture that Pillow knows"
    )
