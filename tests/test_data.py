"""Data sets, augmentation and the order of images."""

import functools
import json
import os
import shutil
import time
from concurrent import futures

import jax
import numpy as np
import pytest
from PIL import Image

from lrunet_jax import data, ops
from lrunet_jax.data import tfds
from lrunet_jax.data.augment import Transforms, fixed_point_rotations, transform
from lrunet_jax.data.sources import digest
from lrunet_jax.errors import InputError


def augmented(augmentation, key, images):
    return augmentation.apply(images, augmentation.draw(key, images.shape))


def test_digits_are_whole_and_the_same_every_time():
    train, test = (data.load_split("digits", split) for split in ("train", "test"))
    assert train.images.shape == (1437, 32, 32, 1)
    assert test.images.shape == (360, 32, 32, 1)
    assert train.images.dtype == test.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    # The UCI file's count of each digit.
    counts = np.bincount(np.concatenate([train.labels, test.labels]))
    np.testing.assert_array_equal(
        counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )
    assert train.images.max() == 255


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """The user's cache: nothing in it was decoded by other code than this."""
    path = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


def test_real_test_sets_are_read_without_tensorflow(shared, empty_cache):
    split = data.load_split("fashion_mnist", "test", str(shared / "tfds"))
    assert split.images.shape == (10_000, 28, 28, 1)
    assert split.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(split.labels), [1000] * 10)
    split = data.load_split("cifar100", "test", str(shared / "tfds"))
    assert split.images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(split.labels), [100] * 100)


@pytest.mark.slow
def test_a_split_is_decoded_once_as_long_as_its_files_are_the_same(
    shared, tmp_path, empty_cache
):
    name = "cifar10/3.0.2"
    shutil.copytree(shared / "tfds" / name, tmp_path / name)
    load = functools.partial(data.load_split, "cifar10", "test", str(tmp_path))
    split = load()
    (kept,) = (empty_cache / "lrunet_jax" / "images").glob("*.npz")
    marked = split._replace(labels=split.labels[::-1])
    np.savez(kept, **marked._asdict())
    np.testing.assert_array_equal(load().labels, marked.labels)
    np.testing.assert_array_equal(load().images, split.images)
    kept.write_bytes(kept.read_bytes()[:1000])  # a broken file is made anew
    np.testing.assert_array_equal(load().labels, split.labels)
    np.savez(kept, **marked._asdict())
    (record,) = (tmp_path / name).glob("*.array_record*")
    os.utime(record, (0, 0))  # other files are decoded
    np.testing.assert_array_equal(load().labels, split.labels)


@pytest.mark.usefixtures("empty_cache")
def test_what_is_kept_is_not_opened_again(shared, monkeypatch):
    first = data.load_split("cifar10", "test", str(shared / "tfds"))

    def decode(*_, **__):
        raise AssertionError("decoded once more")

    monkeypatch.setattr(tfds.TfdsSet, "read", decode)
    again = data.load_split("cifar10", "test", str(shared / "tfds"))
    np.testing.assert_array_equal(again.labels, first.labels)


def test_a_cache_that_cannot_be_written_is_done_without(shared, empty_cache):
    empty_cache.write_text("no directory")
    split = data.load_split("cifar10", "test", str(shared / "tfds"))
    assert len(split.labels) == 10_000


def test_the_directory_may_come_from_the_environment(shared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "tfds"))
    assert len(data.load_split("cifar10", "test").labels) == 10_000


def test_an_unknown_data_set_is_refused():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        data.load_split("cifar1", "train")


def test_a_directory_without_the_set_says_how_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lacks cifar10.*lrunet_jax\[prepare\]"):
        data.load_split("cifar10", "train", str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_a_directory_without_the_split_says_so(shared):
    with pytest.raises(InputError, match="cifar10 has no split 'train'"):
        data.load_split("cifar10", "train", str(shared / "tfds"))


def test_tfrecords_without_tensorflow_say_what_is_needed(shared, tmp_path, monkeypatch):
    source, target = (p / "cifar10" / "3.0.2" for p in (shared / "tfds", tmp_path))
    target.mkdir(parents=True)
    for path in source.glob("*.[jt]*"):
        if "array_record" not in path.name:
            shutil.copyfile(path, target / path.name)
    info = json.loads((target / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (target / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tfrecord form, which needs TensorFlow"):
        data.load_split("cifar10", "test", str(tmp_path))


@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_augmentation_gives_the_original_s_pixels(lowering, shared):
    golden = np.load(shared / "golden" / "augment.npz")
    transforms = Transforms(
        golden["top"],
        golden["left"],
        fixed_point_rotations(golden["angle"], 32),
        golden["flip"].astype(bool),
    )
    apply = jax.jit(lambda x, t: transform(x, t, size=32, padding=4))
    with ops.lowering(lowering):
        found = apply(golden["input"], transforms)
    np.testing.assert_array_equal(found, golden["output"])


@pytest.mark.parametrize("lowering", ops.LOWERINGS)
def test_fashion_mnist_s_28_to_36_to_32_is_pil_s(lowering):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 28, 28, 1), np.uint8)
    top, left = rng.integers(0, 5, (2, 64), np.int32)
    angles, flip = rng.uniform(-10, 10, 64), rng.integers(0, 2, 64).astype(bool)
    transforms = Transforms(top, left, fixed_point_rotations(angles, 32), flip)
    with ops.lowering(lowering):
        found = transform(images, transforms, size=32, padding=4)
    for i in range(64):
        padded = np.pad(images[i, ..., 0], 4)
        crop = padded[top[i] : top[i] + 32, left[i] : left[i] + 32]
        expected = Image.fromarray(crop).rotate(angles[i], Image.Resampling.NEAREST)
        if flip[i]:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(found[i, ..., 0], np.asarray(expected))


def test_augmentation_turned_off_is_the_identity():
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    augment = data.Augmentation(size=32, padding=0, rotation=0.0, flip=False)
    np.testing.assert_array_equal(augmented(augment, jax.random.key(0), images), images)


def test_crops_and_flips_are_uniform():
    # One bright pixel shows where the crop began; angle 0 keeps it in place.
    images = np.zeros((4000, 8, 8, 1), np.uint8)
    images[:, 3, 2] = 255
    augment = data.Augmentation(size=8, padding=1, rotation=0.0, flip=True)
    out = np.asarray(augmented(augment, jax.random.key(0), images))[..., 0]
    _, rows, columns = np.nonzero(out)
    assert len(rows) == 4000
    # Three rows; three columns, mirrored in half of the images.
    rows, columns = np.bincount(rows)[2:5], np.bincount(columns)
    assert np.abs(rows / 4000 - 1 / 3).max() < 0.03  # 4 standard errors
    assert np.abs(columns[[1, 2, 3, 4, 5, 6]] / 4000 - 1 / 6).max() < 0.025


def test_angles_are_uniform_within_ten_degrees():
    # A pixel 100 right of the centre moves down by 100 sin(angle).
    images = np.zeros((4000, 256, 256, 1), np.uint8)
    images[:, 128:131, 228:231] = 255
    augment = data.Augmentation(size=256, padding=0, rotation=10.0, flip=False)
    batches = np.split(images, 20)
    keys = jax.random.split(jax.random.key(0), 20)
    augment = jax.jit(functools.partial(augmented, augment))
    rows = [
        np.asarray(augment(*pair))[..., 0] for pair in zip(keys, batches, strict=True)
    ]
    heights = np.concatenate([r.sum(2) @ np.arange(256) / r.sum((1, 2)) for r in rows])
    angles = np.degrees(np.arcsin((heights - 128.5) / 101.5))
    assert np.abs(angles).max() < 10.7  # a pixel is 0.6 degrees
    quarters, _ = np.histogram(angles, [-11, -5, 0, 5, 11])
    assert np.abs(quarters / 4000 - 1 / 4).max() < 0.03  # 4 standard errors
    assert abs(angles.mean()) < 0.4  # 4 standard errors
    assert abs(angles.std() - 20 / 12**0.5) < 0.2


def test_augmentation_depends_on_the_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    augment = data.Augmentation(size=32, padding=4, rotation=10.0, flip=True)
    one, again, other = (
        augmented(augment, jax.random.key(k), images) for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    orders = [
        data.epoch_order(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], data.epoch_order(0, 0, 1000))


@pytest.mark.parametrize(("images", "full", "rest"), [(10, 2, 2), (8, 2, 0), (3, 0, 3)])
def test_the_last_batch_is_kept_at_its_own_size(images, full, rest):
    order = np.arange(images)
    batches, tail = data.train_batches(order, 4)
    assert batches.shape == (full, 4)
    assert tail.shape == ((1, rest) if rest else (0, 0))
    np.testing.assert_array_equal(
        np.concatenate([batches.ravel(), tail.ravel()]), order
    )
    assert data.last_batch_size(images, 4) == (rest or 4)


def test_evaluation_batches_have_every_image_once():
    batches = data.eval_batches(10, 4)
    np.testing.assert_array_equal(batches, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]])


def test_of_several_processes_one_decodes(shared, empty_cache, monkeypatch):
    decoded = []

    def read(*arguments):
        decoded.append(arguments)
        time.sleep(0.5)  # the others come meanwhile
        return np.zeros((9, 32, 32, 3), np.uint8), np.zeros(9, np.int32)

    monkeypatch.setattr(tfds.TfdsSet, "read", read)
    load = lambda _: data.load_split("cifar10", "test", str(shared / "tfds"))
    with futures.ThreadPoolExecutor() as pool:  # each opens the lock's file anew
        splits = list(pool.map(load, range(4)))
    assert len(decoded) == 1
    assert [len(split.labels) for split in splits] == [9] * 4


def test_the_digest_is_of_images_labels_and_shapes():
    split = data.load_split("digits", "test")
    others = (
        split._replace(labels=split.labels[::-1]),
        split._replace(images=split.images[::-1]),
        split._replace(images=split.images.reshape(-1, 16, 64, 1)),
    )
    digests = {digest([one]) for one in (split, *others)}
    assert len(digests) == 4
    assert digest([split]) == digest([data.load_split("digits", "test")])
