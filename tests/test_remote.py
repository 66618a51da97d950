"""Paths on remote storage: a stand-in that etils knows, and a bucket of our own."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
import remote
from bucket import bucket
from conftest import ROOT, command, process, train_command
from etils import epath
from tiny import FLAG, LRUNET

from lrunet_jax import data, load
from lrunet_jax.errors import InputError
from lrunet_jax.files import find_path, write_whole
from lrunet_jax.runs.config import read_config, write_config
from lrunet_jax.runs.curves import plot_run
from lrunet_jax.runs.lock import locked
from lrunet_jax.runs.record import Record, read_lines
from lrunet_jax.weights import torch_format

LINE = {
    **{"step": 3, "epoch": 1, "train_loss": 2.0, "train_accuracy": 0.5},
    **{"learning_rate": 0.1, "images_per_second": 9.0},
    **{"test_loss": 1.0, "test_accuracy": 0.25},
}
# A stand-in's scheme, one that nobody knows, and one whose library is not installed.
SCHEMES = {"nobody": "no library knows its scheme", "az": "ImportError: Install adlfs"}


@pytest.fixture(autouse=True)
def _empty(tmp_path, monkeypatch):
    """Nothing is stored; and what a command makes of `a://b` here would be found."""
    remote.FILES.clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "here").iterdir()) == []


@pytest.fixture
def run():
    """What a run leaves on the stand-in, but for its checkpoints."""
    path = epath.Path("standin://bucket/runs/one")
    config = {
        **{"model": {"name": "lrunet", "layer_reuse": 1, "width_mult": 0.125}},
        **{"dataset": "digits", "seed": 0, "epochs": 2},
    }
    write_config(path, config)
    record = Record(path, 0)
    record.append(LINE)
    record.append(LINE | {"step": 6, "epoch": 2, "test_accuracy": 0.75})
    record.close()
    return path


def test_a_record_is_written_and_read(run):
    assert [line["epoch"] for line in read_lines(run)] == [1, 2]
    assert read_config(run)["dataset"] == "digits"
    (events,) = (run / "tensorboard").iterdir()
    before = events.read_bytes()
    assert before.count(b"test_accuracy") == 2
    again = Record(run, 3)  # what came later is gone, and another file begins
    assert [line["epoch"] for line in read_lines(run)] == [1]
    again.close()


def test_curves_are_drawn(run):
    plot_run([LINE], run / "curves.png")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_later_of_two_writers_takes_the_lock(capsys):
    path = epath.Path("standin://bucket/run/lock")
    with locked(path, sign=True) as first_is_there:
        assert first_is_there()
        with locked(path, sign=True) as second_is_there:
            assert second_is_there()
            assert not first_is_there()
    assert "not locked: standin://bucket/run is on remote" in capsys.readouterr().out


def test_results_and_plot_take_runs_from_anywhere(run, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (local / name).write_bytes((run / name).read_bytes().replace(b"0.125", b"0.25"))
    result = command("results", "--json", str(run), str(local))
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["last"] for row in rows] == [0.75, 0.75]
    assert rows[0]["runs"].endswith("bucket/runs/one")
    picture = "standin://bucket/runs.png"
    result = command("plot", str(run), f"--out={picture}")
    assert result.returncode == 0, result.stderr
    assert epath.Path(picture).read_bytes().startswith(b"\x89PNG")


def test_pytorch_files_are_read_and_written(shared):
    name = "cifar10-lru1-ckpt-08391.t7"
    content = (shared / "checkpoints" / name).read_bytes()
    epath.Path(f"standin://bucket/{name}").write_bytes(content)
    target = "standin://bucket/new/lru1.pt"
    result = command("convert", f"standin://bucket/{name}", target)
    assert result.returncode == 0, result.stderr
    (_, one), (_, other) = load(f"standin://bucket/{name}"), load(target)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    again = command("convert", f"standin://bucket/{name}", target)
    assert again.returncode == 2
    assert "a path that does not exist yet" in again.stderr


def test_published_files_may_lie_on_remote_storage(shared, monkeypatch):
    name = "cifar10-lru1-ckpt-08391.t7"
    write_whole(f"standin://b/{name}", (shared / "checkpoints" / name).read_bytes())
    monkeypatch.setenv("LRUNET_CHECKPOINTS", "standin://b")
    load("cifar10-lru1")


def test_data_is_copied_before_it_is_decoded(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote.upload(shared / "tfds/cifar10", "standin://bucket/tfds/cifar10")
    found = data.load_split("cifar10", "test", "standin://bucket/tfds")
    expected = data.load_split("cifar10", "test", str(shared / "tfds"))
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("path", "evaluate URL"),
        ("path", "compare URL"),
        ("path", "convert URL new"),
        ("target", "convert cifar10-lru1 URL"),
        ("target", "convert cifar10-lru1 URL.pt"),
        ("run", "results URL"),
        ("run", "plot URL --out=a.png"),
        ("out", "plot a --out=URL.png"),
        ("data_dir", "evaluate cifar10-lru1 --data_dir=URL"),
        ("workdir", "train --workdir=URL"),
        ("profile", "train --workdir=new --profile=URL"),
        ("data_dir", "train --workdir=new --config.dataset=cifar10 --data_dir=URL"),
        ("path", "train --workdir=new --config.init_from=URL"),
    ],
)
def test_a_scheme_that_can_t_be_used_is_one_line(
    scheme, field, arguments, shared, monkeypatch, tmp_path
):
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(shared / "checkpoints"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"{scheme}://bucket/run"
    name, *rest = arguments.replace("URL", url).split()
    if name == "train":
        result = train_command(*rest)
    else:
        result = command(name, *rest, cwd=pathlib.Path.cwd())
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {field} is '{url}")
    assert f", which can't be used: {SCHEMES[scheme]}" in line
    assert remote.FILES == {}


def test_the_library_of_gs_is_named_with_its_command(monkeypatch):
    def no_library(*_, **__):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr("fsspec.filesystem", no_library)
    with pytest.raises(InputError) as error:
        find_path("workdir", "gs://bucket/run")
    assert str(error.value) == (
        "workdir is 'gs://bucket/run', which can't be used: its library is missing: "
        "pip install 'lrunet_jax[gcs]'"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
def test_storage_that_fails_is_one_line(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("403 forbidden")  # as no OSError of the system

    monkeypatch.setattr(remote.StandIn, "open", refuse)
    with pytest.raises(InputError, match="can't be written: RuntimeError: 403"):
        torch_format.write("standin://bucket/a.pt", {})
    result = train_command("--workdir=standin://bucket/run", FLAG)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "error: standin://bucket/run can't be used now: RuntimeError"
    )


def in_a_bucket(shared):
    """Trains, resumes, evaluates and converts on gs://; for a process of its own."""
    workdir = "gs://bucket/runs/one"
    flags = (
        *(f"--workdir={workdir}", *LRUNET, "--config.batch_size=479"),
        "--config.augment.size=16",
    )

    def ended(result):
        assert result.returncode == 0, result.stderr
        return result.stdout

    lrunet_jax = lambda name, *rest: ended(command(name, *rest))
    trace = "gs://bucket/trace"
    printed = ended(train_command(*flags, "--config.epochs=1", f"--profile={trace}"))
    assert f"profile of the second call: {trace}\n" in printed
    assert "resumed  step 3," in ended(train_command(*flags, "--config.epochs=2"))
    figures = json.loads(lrunet_jax("evaluate", workdir, "--json"))
    lrunet_jax("convert", workdir, "gs://bucket/new/one.pt")
    lrunet_jax("convert", "gs://bucket/new/one.pt", "gs://bucket/new/one")
    for name in ("new/one.pt", "new/one"):
        on = ("--dataset=digits", "--json")
        again = json.loads(lrunet_jax("evaluate", f"gs://bucket/{name}", *on))
        assert again["correct"] == figures["correct"]
    (row,) = json.loads(lrunet_jax("results", "--json", workdir))
    assert row["last"] == figures["accuracy"]
    remote.upload(f"{shared}/tfds/cifar10", "gs://bucket/tfds/cifar10")
    network = f"{shared}/checkpoints/cifar10-mobilenet-025x-ckpt-08472.t7"
    on = ("--data_dir=gs://bucket/tfds", "--json")
    assert json.loads(lrunet_jax("evaluate", network, *on))["correct"] == 8472
    # A checkpoint that a killed process has left in part is none.
    (epath.Path(workdir) / "checkpoints" / "6" / "commit_success.txt").unlink()
    assert "resumed  step 3," in ended(train_command(*flags, "--config.epochs=2"))


@pytest.mark.slow
def test_a_run_in_a_bucket_is_trained_resumed_evaluated_and_converted(tmp_path, shared):
    with bucket("bucket") as variables:
        paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        own = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        code = "import sys, test_remote; test_remote.in_a_bucket(sys.argv[1])"
        environment = os.environ | variables | paths | own
        result = process("-c", code, str(shared), env=environment, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
