"""Damage to a checkpoint is seen, and told from trouble with a disk or memory."""

import contextlib
import errno
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import contents, files_of, flipped_bits
from etils import epath

from lrunet_jax.errors import InputError, TroubleError
from lrunet_jax.runs.checkpoints import Checkpoints
from lrunet_jax.runs.restoring import read_checkpoint, restore_latest

CONFIG = {"epochs": 3, "decay_epochs": []}
LINE = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5}
STEPS = (10, 20, 30)  # the second is best


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from test_checkpoints import state

    directory = epath.Path(tmp_path_factory.mktemp("saved")) / "checkpoints"
    with contextlib.closing(Checkpoints(directory)) as checkpoints:
        for step, accuracy in zip(STEPS, (0.25, 0.75, 0.5), strict=True):
            test = {"test_loss": 1.0, "test_accuracy": accuracy}
            lines = [LINE | {"step": step}]
            checkpoints.save(step, state(step), CONFIG, {}, lines, test)
    assert sorted(path.name for path in directory.iterdir()) == ["20", "30"]
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "checkpoints")
    return epath.Path(tmp_path) / "checkpoints"


def wanted(*_):
    abstract = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype)
    return {
        "step": abstract((), np.int32),
        "params": {"kernel": abstract((2, 3), np.float32)},
        "momentum": (abstract((2,), np.float32), {}),
    }


def test_what_was_saved_is_read(directory):
    found = restore_latest(directory, wanted)
    assert (found.step, found.config, found.verified) == (30, CONFIG, True)
    assert found.lines == [LINE | {"step": 30}]
    np.testing.assert_array_equal(found.fields["params"]["kernel"], np.full((2, 3), 30))
    assert read_checkpoint(directory, None, wanted).step == 20
    assert restore_latest(directory / "nowhere", wanted) is None


@pytest.mark.slow
def test_a_flipped_bit_anywhere_changes_nothing_that_is_read(directory):
    intact = read_checkpoint(directory, 30, wanted)
    outcomes = {"read": 0, "named": 0}
    for _ in flipped_bits(directory / "30", 12):
        try:
            found = read_checkpoint(directory, 30, wanted)
        except InputError:
            outcomes["named"] += 1
            continue
        outcomes["read"] += 1
        jax.tree.map(np.testing.assert_array_equal, found.fields, intact.fields)
        assert found.metrics == intact.metrics
        assert (found.config, found.lines) == (intact.config, intact.lines)
    assert min(outcomes.values()) > 50, outcomes  # of the bytes some mean nothing


@pytest.mark.parametrize("damage", ["arrays", "cut", "metrics", "record", "digest"])
def test_damage_is_named_set_aside_and_the_step_before_taken(damage, directory, capsys):
    last = directory / "30"
    if damage == "arrays":  # as one bit that the file's own checks do not see
        found = {"params": {"kernel": jnp.full((2, 3), 31.0)}}
        rest = ocp.StandardCheckpointer()
        fields = rest.restore(last / "state")
        shutil.rmtree(last / "state")
        rest.save(last / "state", fields | found)
        rest.close()
    elif damage == "cut":
        for path in files_of(last / "state"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path = last / damage / ("metrics" if damage == "metrics" else "metadata")
        path.write_text(path.read_text().replace("5", "6").replace("3", "4"))
    (directory / "30.damaged").mkdir()  # of an earlier time
    before = list(contents(last).values())
    found = restore_latest(directory, wanted)
    assert found.step == 20
    output = capsys.readouterr().out
    assert output.startswith("checkpoint 30 can't be read: ")
    assert output.count("\n") == 1
    assert list(contents(directory / "30.damaged1").values()) == before
    assert not last.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '"a"',
        "NaN",
        '{"test_accuracy": NaN}',
        '{"test_accuracy',
        '{"test_accuracy": 7}',
        '{"test_accuracy": "a"}',
        '{"test_accuracy": true}',
    ],
)
@pytest.mark.parametrize("has_digest", [True, False])
def test_metrics_of_another_kind_are_named_in_any_step(
    text, has_digest, directory, capsys
):
    for step in (20, 30):
        if not has_digest:
            shutil.rmtree(directory / str(step) / "digest")
    (directory / "30" / "metrics" / "metrics").write_text(text)
    assert read_checkpoint(directory, None, wanted).step == 20
    assert "it may have been the best" in capsys.readouterr().err
    assert restore_latest(directory, wanted).step == 20
    assert "checkpoint 30 can't be read" in capsys.readouterr().out
    # The best is chosen by those of an older one.
    (directory / "30.damaged").rename(directory / "10")
    assert restore_latest(directory, wanted).step == 20
    assert (directory / "10.damaged").exists()
    Checkpoints(directory).close()


def test_without_a_digest_it_is_called_unverified(directory, capsys):
    shutil.rmtree(directory / "20" / "digest")
    assert not read_checkpoint(directory, 20, wanted).verified
    assert "checkpoints/20 is unverified: it has no digest" in capsys.readouterr().err


TROUBLE = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    TimeoutError("slow"),
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
]


@pytest.mark.parametrize("error", TROUBLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("times", [3, 4])
def test_trouble_is_tried_again_and_changes_nothing(
    error, times, directory, monkeypatch
):
    failures = [error] * times
    restore = ocp.PyTreeCheckpointHandler.restore

    def failing(self, *args, **kwargs):
        if failures:
            try:
                raise failures.pop()
            except Exception as cause:
                raise ValueError("some library's own words") from cause
        return restore(self, *args, **kwargs)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", failing)
    before = contents(directory)
    if times == 3:
        assert restore_latest(directory, wanted).step == 30
    else:
        with pytest.raises(TroubleError, match="can't be read now") as raised:
            restore_latest(directory, wanted)
        assert "\n" not in str(raised.value)
        assert str(directory / "30") in str(raised.value)
    assert contents(directory) == before


def test_what_fails_once_in_a_library_s_own_words_is_no_damage(directory, monkeypatch):
    failures = [ValueError("UNAVAILABLE: Error reading")]
    restore = ocp.PyTreeCheckpointHandler.restore

    def failing(self, *args, **kwargs):
        if failures:
            raise failures.pop()
        return restore(self, *args, **kwargs)

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", failing)
    before = contents(directory)
    assert restore_latest(directory, wanted).step == 30
    assert contents(directory) == before


@pytest.mark.parametrize("step", [31, 10])
def test_a_checkpoint_under_another_name_is_damage(step, directory):
    shutil.copytree(directory / "30", directory / str(step))
    assert restore_latest(directory, wanted).step == 30
    assert (directory / f"{step}.damaged").exists()


def test_a_file_that_cannot_be_read_is_trouble(directory, monkeypatch):
    unreadable = files_of(directory / "30" / "state")[-1]  # read by TensorStore alone
    read = epath.Path("").open.__func__

    def failing(path, *args, **kwargs):
        if str(path) == str(unreadable):
            raise OSError(errno.EIO, "Input/output error")
        return read(path, *args, **kwargs)

    broken = lambda *args, **kwargs: 1 / 0
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", broken)
    monkeypatch.setattr(type(directory), "open", failing)
    before = contents(directory)
    with pytest.raises(TroubleError, match="Errno 5"):
        restore_latest(directory, wanted)
    assert contents(directory) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_too_many_open_files_are_trouble(directory):
    before = contents(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    restore_latest(directory, wanted)  # what is opened once for all
    taken = len(list(epath.Path("/proc/self/fd").iterdir()))
    try:
        for free in (1, 3, 6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken + free, hard))
            with contextlib.suppress(TroubleError):
                assert restore_latest(directory, wanted).step == 30
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert contents(directory) == before


def test_the_digest_is_of_what_is_stored(directory):
    digest = json.loads((directory / "30" / "digest" / "metadata").read_text())
    assert digest["state"].keys() == {"step", "params", "momentum"}
    assert digest["items"].keys() == {"step", "config", "data", "metrics", "record"}
