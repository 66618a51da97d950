"""Any set of images: TFDS directories of others, folders, arrays; what is held out."""

import hashlib
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT, command, process, train_command
from PIL import Image
from tfds_sets import write_set
from tiny import FLAG, LRUNET, tiny_config

import lrunet_jax
from configs import default
from lrunet_jax import data
from lrunet_jax.data.hold_out import hold_out
from lrunet_jax.errors import InputError
from lrunet_jax.train.setup import for_data
from lrunet_jax.weights.loading import open_model

RNG = np.random.default_rng(0)
SMALL = (FLAG, "--config.batch_size=12")


def picture(side=12, channels=3):
    return RNG.integers(0, 256, (side, side, channels), np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    """A folder of three classes, of pictures of several sizes, one of them grey."""
    for name in ("cat", "dog", "emu"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(picture(12 + i))
            kind = "L" if (name, i) == ("cat", 3) else "RGB"
            image.convert(kind).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_classes_shape_and_splits_come_from_a_set_of_tfds(tmp_path):
    some = lambda count: [(picture(20, 1), i % 3) for i in range(count)]
    write_set(tmp_path, {"train": some(30), "test": some(9)}, classes=("x", "y", "z"))
    info = data.load_dataset("shapes", str(tmp_path)).info
    assert info.image_shape == (20, 20, 1)
    assert info.class_names == ("x", "y", "z")
    assert info.num_images == (30, 9)


def test_a_set_of_many_classes_and_sizes_without_a_test_split(tmp_path):
    # 62 classes, of which the last has one image; three sizes.
    labels = [61, *(i % 61 for i in range(1, 244))]
    sides = (20, 24, 28)
    examples = [(picture(sides[i % 3]), label) for i, label in enumerate(labels)]
    names = [f"class {i}" for i in range(62)]
    write_set(tmp_path, {"train": examples}, classes=names)
    load = lambda **fields: data.load_dataset("shapes", str(tmp_path), **fields)
    with pytest.raises(InputError) as error:
        load()
    assert str(error.value) == (
        "shapes (train) has images of several sizes: 82 of 20x20, 81 of 24x24, 81 of "
        "28x28 (height x width); they must be resized to one: --config.image_size=S, "
        "of other commands --image_size=S"
    )
    found = load(image_size=16, validation=0.1)
    assert found.info.image_shape == (16, 16, 3)
    assert found.info.num_images == (198, 24)
    assert found.info.num_validation == 22
    assert set(found.train.labels) == set(range(62))


@pytest.mark.parametrize(
    ("features", "channels"),
    [
        ({"image": tfds.features.Image(shape=(8, 8, 3))}, 3),
        (
            {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.Scalar(np.int64),
            },
            3,
        ),
        (
            {
                "image": tfds.features.Image(shape=(8, 8, 4)),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            },
            4,
        ),
    ],
)
def test_a_set_of_another_kind_is_refused(features, channels, tmp_path):
    if "label" not in features:
        features |= {"name": tfds.features.ClassLabel(names=["a", "b"])}
        pytest.importorskip("tensorflow_datasets")
    write = lambda: write_set(
        tmp_path, {"train": [(picture(8, channels), 0)]}, features=features
    )
    if "name" in features:
        features["label"] = features.pop("name")
        features["picture"] = features.pop("image")
        with pytest.raises(Exception, match="image"):
            write()
        return
    write()
    with pytest.raises(InputError, match="it must have an image of uint8 with 1 or 3"):
        data.load_split("shapes", "train", str(tmp_path))


def test_an_unknown_set_is_named_with_the_nearest_known(tmp_path):
    for name, hint in (("cifar11", " (did you mean 'cifar10'?)"), ("nothing", "")):
        with pytest.raises(InputError) as error:
            data.load_split(name, "train", str(tmp_path))
        assert str(error.value) == (
            f"dataset is {name!r}{hint}, which can't be opened in data_dir "
            f"'{tmp_path}': it is none that TFDS knows; it must be digits, folder, or "
            "a set that TFDS has prepared there"
        )


def test_what_is_held_out_follows_from_labels_and_seed_alone():
    labels = RNG.permutation(np.repeat(np.arange(5), (100, 50, 20, 3, 1)))
    kept, held = hold_out(labels, 40, (0, 1))
    assert sorted([*kept, *held]) == list(range(174))
    assert len(held) == 40
    # In proportion, and no class is without an image to train on.
    assert np.bincount(labels[held], minlength=5).tolist() == [23, 11, 5, 1, 0]
    again, other = (hold_out(labels, 40, seed)[1] for seed in ((0, 1), (1, 1)))
    np.testing.assert_array_equal(held, again)
    assert set(held) != set(other)
    most = hold_out(labels, 169, (0, 1))[0]
    assert np.bincount(labels[most]).tolist() == [1] * 5


def test_the_images_held_out_are_the_same_for_every_seed_and_every_time():
    dataset = data.load_dataset("digits", validation=100, split_seed=3)
    digest = hashlib.sha256(dataset.validation.images.tobytes()).hexdigest()
    again = data.load_dataset("digits", validation=100, split_seed=3)
    np.testing.assert_array_equal(dataset.validation.images, again.validation.images)
    # Pinned: seeds are compared on the same images in a year, too.
    assert digest[:16] == "b01e5e73abe5a19a"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-1", "validation is -1.0; it must be a number of images, or a share below 1"),
        ("2.5", "validation is 2.5; it must be a number of images, or a share below 1"),
        ("1430", "validation is 1430; it must be at most 1427, as each class keeps"),
    ],
)
def test_a_bad_number_to_hold_out_is_one_line(value, message, tmp_path):
    flags = (f"--config.validation={value}", f"--workdir={tmp_path / 'run'}")
    result = train_command(*flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_the_crop_follows_the_image_and_mirroring_the_set():
    def augment(name, shape, **given):
        config = default.paper()
        config.augment.update(given)
        info = data.DatasetInfo(name, shape, ("a", "b"), (10, 10))
        found = for_data(config, info).augment
        assert config.augment.size is given.get("size")  # the given one stays
        return found.size, found.flip

    assert augment("folder", (48, 48, 3)) == (48, True)
    assert augment("cifar10", (32, 32, 3)) == (32, True)
    assert augment("eurosat/rgb", (64, 64, 3)) == (64, True)
    assert augment("mnist", (28, 28, 1)) == (28, False)
    assert augment("emnist/letters", (28, 40, 1)) == (28, False)
    assert augment("mnist", (28, 28, 1), size=24, flip=True) == (24, True)
    assert default.get_config("fashion_mnist").augment.size == 32
    info = data.dataset_info("fashion_mnist")
    assert for_data(default.get_config("fashion_mnist"), info).augment.size == 32


@pytest.mark.slow
def test_a_folder_is_trained_on_and_its_run_needs_no_table(pictures, tmp_path):
    run = tmp_path / "run"
    flags = (
        *("--config.dataset=folder", f"--data_dir={pictures}", f"--workdir={run}"),
        *LRUNET,
        *("--config.batch_size=12", "--config.epochs=2"),  # and the crop's size unset
    )
    refused = train_command(*flags)
    assert refused.returncode == 2
    assert "error: folder has images of several sizes: " in refused.stderr
    result = train_command(*flags, "--config.image_size=16")
    assert result.returncode == 0, result.stderr
    line = "data     folder: 22 training and 2 test images of 16x16x3, 3 classes\n"
    assert line in result.stdout
    stored = open_model(run)
    assert stored.class_names == ("cat", "dog", "emu")
    assert tuple(stored.image_size) == (16, 16)
    assert stored.channels == 3
    facts = json.loads((run / "data.json").read_text())
    assert facts["num_images"] == [22, 2]
    assert json.loads((run / "config.json").read_text())["augment"] == {
        **{"flip": False, "padding": 0, "rotation": 0.0, "size": 16},
    }
    # The same pictures are needed to go on, and a change of them is one line.
    (pictures / "cat" / "7.png").unlink()
    changed = train_command(*flags, "--config.image_size=16", "--config.epochs=3")
    assert changed.returncode == 2
    assert "error: num_images of the data is [" in changed.stderr
    Image.fromarray(picture(19)).save(pictures / "cat" / "7.png")
    changed = train_command(*flags, "--config.image_size=16", "--config.epochs=3")
    assert "error: digest of the data is '" in changed.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_broken_pictures_are_named_or_counted(pictures, tmp_path):
    (pictures / "dog" / "2.png").write_text("no picture")
    flags = (
        *("--config.dataset=folder", f"--data_dir={pictures}", *SMALL),
        *("--config.image_size=16", f"--workdir={tmp_path / 'run'}"),
    )
    refused = train_command(*flags)
    assert refused.returncode == 2
    assert f"picture is '{pictures / 'dog' / '2.png'}'" in refused.stderr
    assert "--config.skip_broken leaves such files out" in refused.stderr
    skip = train_command(*flags, "--config.skip_broken")
    assert skip.returncode == 0, skip.stderr
    assert "skipped  1 of 24 pictures, which can't be read\n" in skip.stdout


@pytest.mark.usefixtures("shallow")
def test_a_set_that_does_not_fit_the_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("lrunet_jax.memory.device_memory", lambda: 1_000_000)
    result = train_command(f"--workdir={tmp_path / 'run'}", *SMALL)
    assert result.returncode == 2
    assert result.stderr.startswith(
        "error: the data set takes 0.00185 GB of memory, and a device has 0.001; a "
        "smaller image_size takes less"
    )


def config_of_arrays():
    return tiny_config(batch_size=16, epochs=1)


@pytest.mark.usefixtures("shallow")
def test_arrays_are_trained_on_and_checked_on_resuming(tmp_path):
    train, test = (data.load_split("digits", name) for name in ("train", "test"))
    arrays = (train.images[:64], train.labels[:64]), (test.images, test.labels)
    workdir = str(tmp_path / "run")
    state = lrunet_jax.train_and_evaluate(config_of_arrays(), workdir, data=arrays)
    assert int(state.step) == 4
    assert open_model(workdir).dataset == "arrays"
    other = (train.images[1:65], train.labels[1:65]), (test.images, test.labels)
    with pytest.raises(InputError, match="digest of the data is"):
        lrunet_jax.train_and_evaluate(config_of_arrays(), workdir, data=other)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), [0, 1, 0, 1], "must be uint8 images"),
        (np.zeros((4, 8, 8, 1)), [0, 1, 0, 1], "float64.4, 8, 8, 1. and int64.4."),
        (np.zeros((4, 8, 8, 2), np.uint8), [0, 1, 0, 1], "must be uint8 images"),
        (np.zeros((4, 8, 8, 1), np.uint8), [0, 1, 0], "and n integer labels"),
        (
            np.zeros((4, 8, 8, 1), np.uint8),
            [0, 1, 0, -1],
            "is -1; it must be in .0, 1000000.",
        ),
        (np.zeros((4, 8, 8, 1), np.uint8), [0.5, 1, 0, 1], "and n integer labels"),
        (np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, int), "n at least 1"),
    ],
)
def test_arrays_of_another_kind_are_one_line(images, labels, message, tmp_path):
    good = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1])
    with pytest.raises(InputError, match=message) as error:
        lrunet_jax.train_and_evaluate(
            config_of_arrays(),
            str(tmp_path / "run"),
            data=((images, np.asarray(labels)), good),
        )
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_slash_in_a_name_is_none_in_the_default_workdir(tmp_path):
    examples = [(picture(16, 1), i % 2) for i in range(40)]
    write_set(tmp_path / "tfds", {"train": examples}, name="letters")
    (tmp_path / "tfds/letters/1.0.0").rename(tmp_path / "tfds/letters/all")
    (tmp_path / "tfds/letters/all").rename(tmp_path / "tfds/1.0.0")
    (tmp_path / "tfds/letters/all").mkdir()
    (tmp_path / "tfds/1.0.0").rename(tmp_path / "tfds/letters/all/1.0.0")
    flags = ("--config.dataset=letters/all", f"--data_dir={tmp_path / 'tfds'}", *SMALL)
    result = process(str(ROOT / "train.py"), *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"workdir  {tmp_path / 'runs' / 'letters-all-mobilenet'}\n" in result.stdout


def test_labels_of_a_folder_s_test_images_follow_the_classes_to_train_on(tmp_path):
    for split in ("train", "test"):
        for name in ("b", "c"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                path = tmp_path / split / name / f"{i}.png"
                Image.fromarray(picture()).save(path)
    load = lambda: data.load_split("folder", "test", str(tmp_path)).labels.tolist()
    assert load() == [0, 0, 1, 1]
    (tmp_path / "train" / "a").mkdir()
    Image.fromarray(picture()).save(tmp_path / "train" / "a" / "0.png")
    assert load() == [1, 1, 2, 2]  # and not what was decoded before


def test_what_is_beside_the_pictures_is_named(pictures, capsys):
    (pictures / "cat" / "more").mkdir()
    (pictures / "dog" / "notes.txt").write_text("mine")
    data.load_dataset("folder", str(pictures), image_size=8)
    printed = capsys.readouterr().out
    assert f"ignored  2 in {pictures} beside its pictures: " in printed
    assert str(pictures / "cat" / "more") in printed


def test_labels_that_are_unknown_are_refused(tmp_path):
    examples = [(picture(8), -1 if i == 3 else i % 2) for i in range(8)]
    write_set(tmp_path, {"train": examples})
    with pytest.raises(InputError) as error:
        data.load_split("shapes", "train", str(tmp_path))
    assert str(error.value) == (
        "a label of shapes (train) is -1; it must be in [0, 2), as there are so many "
        "classes"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_evaluation_on_other_pictures_is_refused_or_said(pictures, tmp_path):
    run = tmp_path / "run"
    flags = ("--config.dataset=folder", "--config.image_size=16", *SMALL)
    trained = train_command(*flags, f"--data_dir={pictures}", f"--workdir={run}")
    assert trained.returncode == 0, trained.stderr
    same = command("evaluate", run, f"--data_dir={pictures}")
    assert (same.returncode, same.stderr) == (0, "")
    Image.fromarray(picture()).save(pictures / "emu" / "9.png")
    more = command("evaluate", run, f"--data_dir={pictures}")
    assert "test images are not those of the training" in more.stderr
    (pictures / "emu").rename(pictures / "ant")
    other = command("evaluate", run, f"--data_dir={pictures}")
    assert other.returncode == 2
    assert "one with the class 'cat' where folder has 'ant'" in other.stderr
