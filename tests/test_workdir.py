"""The workdir of a run: one writer, mended where it is damaged, lost for no error."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil

import jax
import jax.numpy as jnp
import pytest
from conftest import contents, train_command
from flax import struct
from test_loop import log_of
from tiny import FLAG, tiny_config

from configs import digits
from lrunet_jax.errors import InputError, TroubleError
from lrunet_jax.runs import workdir as workdir_module
from lrunet_jax.runs.checkpoints import Checkpoints
from lrunet_jax.runs.events import Events
from lrunet_jax.runs.lock import locked
from lrunet_jax.runs.record import Record
from lrunet_jax.runs.workdir import Workdir
from lrunet_jax.train import loop
from lrunet_jax.train.loop import train_and_evaluate

LINES = [
    {"step": step, "epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5}
    for epoch, step in enumerate((3, 6), start=1)
]


def quick_config(**fields):
    return tiny_config(batch_size=479, **fields)  # 3 steps an epoch, one program


class State(struct.PyTreeNode):
    """As much of a training state as a workdir knows of."""

    step: jax.Array
    params: dict[str, jax.Array]


def state_at(step):
    params = {"kernel": jnp.full((2, 3), step, jnp.float32)}
    return State(jnp.asarray(step, jnp.int32), params)


def metrics_of(accuracy):
    return {"test_loss": 1.0, "test_accuracy": accuracy}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir in which two epochs of three steps were trained."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with Workdir(str(workdir), quick_config()) as run:
        assert run.restore(state_at(0)) is None
        run.start(0, None)
        for line in LINES:
            test = metrics_of(0.5)
            run.save(state_at(line["step"]), line | test, test)
        run.draw_curves()
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def go_on(workdir):
    """Does what a run does with its workdir that goes on."""
    with Workdir(str(workdir), quick_config()) as run:
        if (restored := run.restore(state_at(0))) is None:
            run.start(0, None)
            return 0
        run.start(restored[0].step, restored[0].lines)
        return restored[0].step


def damaged_line(text):
    return lambda lines: [lines[0], text, *lines[1:]]


DAMAGE = {
    "half a line": lambda lines: [lines[0], lines[1][:30]],
    "blank": damaged_line(""),
    "a list": damaged_line("[1]"),
    "no step": damaged_line('{"epoch": 1}'),
    "a step in words": damaged_line('{"step": "a", "epoch": 1}'),
    "doubled": lambda lines: [lines[0], *lines],
    "not UTF-8": lambda lines: [lines[0], "\udcff"],
    "another number": lambda lines: [lines[0].replace("1", "7"), *lines[1:]],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_mended_from_the_checkpoint(damage, run, capsys):
    path = run / "metrics.jsonl"
    intact = path.read_text()
    text = "".join(f"{line}\n" for line in damage(intact.splitlines()))
    path.write_bytes(text.encode(errors="surrogateescape"))
    go_on(run)
    output = capsys.readouterr().out
    assert path.read_text() == intact
    assert f"{path}" in output
    assert "it is written anew from the checkpoint" in output
    if damage is not DAMAGE["another number"]:
        assert "metrics.jsonl, line " in output


def test_a_record_that_lacks_lines_gets_them(run, capsys):
    path = run / "metrics.jsonl"
    intact = path.read_text()
    for text in (intact.splitlines(keepends=True)[0], ""):
        path.write_text(text)
        go_on(run)
        assert path.read_text() == intact
    path.unlink()
    go_on(run)
    assert path.read_text() == intact


@pytest.mark.parametrize("damage", ["blank", "a list", "no step", "doubled"])
def test_a_damaged_record_that_cannot_be_mended_is_named_with_its_line(
    damage, tmp_path
):
    path = tmp_path / "metrics.jsonl"
    text = "\n".join(DAMAGE[damage]([json.dumps(line) for line in LINES]))
    path.write_text(text)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2, can't be read"):
        Record(tmp_path, step=6)
    assert path.read_text() == text


def test_a_record_without_checkpoints_is_not_overwritten(run):
    shutil.rmtree(run / "checkpoints")
    line = json.dumps(LINES[1] | {"step": 9, "epoch": 3})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds 3 epochs, and there is no checkpoint"):
        go_on(run)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["", "[1]", '{"model"', "\udcff"])
def test_a_damaged_config_is_written_anew(text, run, capsys):
    path = run / "config.json"
    intact = path.read_text()
    path.write_bytes(text.encode(errors="surrogateescape"))
    go_on(run)
    assert path.read_text() == intact
    assert "config.json in" in capsys.readouterr().out


def test_the_checkpoint_s_config_counts_and_not_the_file_s(run):
    path = run / "config.json"
    intact = path.read_text()
    path.write_text(intact.replace('"width_mult": 0.125', '"width_mult": 0.25'))
    go_on(run)
    assert path.read_text() == intact


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "metrics.jsonl",
        "curves.png",
        "lock",
        "checkpoints",
        "tensorboard",
    ],
)
def test_what_is_of_another_kind_is_named(name, run):
    if (run / name).is_dir():
        shutil.rmtree(run / name)
        (run / name).write_text("mine")
    else:
        (run / name).unlink()
        (run / name).mkdir()
    with pytest.raises(InputError, match=f"{name} is in the way; it must be a "):
        go_on(run)


@pytest.mark.parametrize("name", ["config.json", "curves.png", "lock", "tensorboard"])
@pytest.mark.parametrize("kind", ["fifo", "a link that leads nowhere"])
def test_what_is_neither_file_nor_directory_is_named(name, kind, tmp_path):
    path = tmp_path / name
    os.mkfifo(path) if kind == "fifo" else path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{name} is in the way; it must be a "):
        go_on(tmp_path)


def test_a_lock_s_words_are_one_line(run):
    (run / "lock").write_bytes(b"\xff\xfe\nmine\n")
    refused = pytest.raises(InputError, match=r"in which .* mine trains")
    with locked(run / "lock", sign=False), refused as error:
        go_on(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lines", [5, [1], {}, [{"step": 6}], [{"step": "y"}]])
def test_a_record_of_another_kind_in_a_checkpoint_without_a_digest(lines, run, capsys):
    shutil.rmtree(run / "checkpoints" / "6" / "digest")
    path = run / "checkpoints" / "6" / "record" / "metadata"
    path.write_text(json.dumps({"lines": lines}))
    assert go_on(run) == 3
    assert "checkpoint 6 can't be read: " in capsys.readouterr().out
    assert [line["step"] for line in log_of(run)] == [3]


def test_parts_that_a_killed_run_left_are_removed(run):
    (run / "metrics.jsonl.0123456789ab.part").write_text("{")
    go_on(run)
    assert not list(run.glob("*.part"))


def hold(path, ready, done):
    with locked(path, sign=True):
        ready.set()
        done.wait()


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(run):
    spawning = multiprocessing.get_context("spawn")
    ready, done = spawning.Event(), spawning.Event()
    other = spawning.Process(target=hold, args=(run / "lock", ready, done), daemon=True)
    other.start()
    assert ready.wait(60)
    before = contents(run)
    with pytest.raises(InputError, match=f"in which process {other.pid} on .* trains"):
        go_on(run)
    assert contents(run) == before
    other.kill()
    other.join()
    go_on(run)


REFUSED = [
    {"decay_of": "al"},
    {"init_from": "nosuch"},
    {"augment.size": 100},
    {"augment.padding": 40},
    {"dataset": "cifar10"},
    {"batch_size": 2000},
    {"epochs": 1 << 31},
    {"schedule": "no"},
    {"model.layer_reuse": 10**8},
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_written_before_all_is_known_to_be_good(fields, exists, tmp_path):
    config = digits.get_config()
    config.update_from_flattened_dict(fields)
    workdir = tmp_path / "run"
    if exists:
        workdir.mkdir()
    with pytest.raises(InputError):
        train_and_evaluate(config, str(workdir), str(tmp_path))
    assert list(tmp_path.iterdir()) == [workdir] * exists
    assert not exists or list(workdir.iterdir()) == []


@pytest.mark.usefixtures("shallow")
def test_a_run_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "require_memory", refuse_all)
    with pytest.raises(InputError, match="GB"):
        train_and_evaluate(quick_config(), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def refuse_all(what, taken, smaller=""):
    assert 1e6 < taken < 1e9
    raise InputError(f"{what} takes {taken / 1e9} GB")


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_workdir_that_is_deleted_ends_the_run_and_the_state_is_saved(
    tmp_path, monkeypatch
):
    append = Record.append

    def deleting(self, line):
        if line["epoch"] == 2:
            shutil.rmtree(tmp_path / "run")
        append(self, line)

    monkeypatch.setattr(Record, "append", deleting)
    result = in_command(tmp_path / "run")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"{tmp_path / 'run'} can't be written: FileNotFoundError" in result.stderr
    assert "step 6, which the run has come to, is saved in" in result.stderr
    monkeypatch.undo()
    assert "resumed  step 6, " in in_command(tmp_path / "run").stdout
    assert [line["epoch"] for line in log_of(tmp_path / "run")] == [1, 2]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Record, "_write"),
        (Events, "append"),
        (Checkpoints, "save"),
        (workdir_module, "plot_run"),
    ],
)
def test_a_disk_that_is_full_ends_the_run_and_what_can_be_is_saved(
    place, name, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    line = LINES[0] | metrics_of(0.5)

    def run_an_epoch():
        with Workdir(str(tmp_path / "run"), quick_config()) as run:
            run.start(0, None)
            monkeypatch.setattr(place, name, full)
            run.save(state_at(3), line, metrics_of(0.5))
            run.draw_curves()

    with pytest.raises(TroubleError, match=r"can't be written: .*Errno 28") as error:
        run_an_epoch()
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    if place is Checkpoints:
        assert str(error.value).endswith("which the run has come to, is not saved")
        assert go_on(tmp_path / "run") == 0
    else:
        assert "which the run has come to, is saved in" in str(error.value)
        assert go_on(tmp_path / "run") == 3
        (text,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(text) == line


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_save_that_fails_at_the_end_is_made_again(tmp_path, monkeypatch):
    """As where the latest checkpoint was still being written, and is deleted."""
    close, calls = Checkpoints.close, []

    def failing(self):
        close(self)
        calls.append(self)
        if len(calls) == 1:
            shutil.rmtree(tmp_path / "run" / "checkpoints")
            raise ValueError("NOT_FOUND")

    monkeypatch.setattr(Checkpoints, "close", failing)
    result = in_command(tmp_path / "run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "step 6, which the run has come to, is saved in" in result.stderr
    monkeypatch.undo()
    assert "resumed  step 6, " in in_command(tmp_path / "run").stdout


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_a_run_whose_directory_another_one_has_taken_does_not_write_there(
    tmp_path, monkeypatch
):
    append = Workdir.save

    def replaced(self, *args):
        if not taken:
            shutil.rmtree(tmp_path / "run")
            (tmp_path / "run").mkdir()
            taken.append(other.enter_context(locked(tmp_path / "run/lock", sign=True)))
        append(self, *args)

    taken, other = [], contextlib.ExitStack()
    monkeypatch.setattr(Workdir, "save", replaced)
    with other:
        result = in_command(tmp_path / "run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "its lock is gone, or another one" in result.stderr
    assert "is not saved" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def in_command(workdir, *flags):
    few = ("--config.batch_size=479", "--config.schedule=piecewise")
    return train_command(f"--workdir={workdir}", FLAG, *few, *flags)


def test_the_lock_is_free_again_after_a_refusal(tmp_path):
    path = tmp_path / "lock"
    with locked(path, sign=True):
        again = locked(path, sign=False)
        with pytest.raises(InputError, match=f"process {os.getpid()} on"):
            again.__enter__()
        assert str(os.getpid()) in path.read_text()
    with locked(path, sign=False):
        pass
