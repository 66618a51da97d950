"""Several processes, as of many hosts: they train, stop and fail as one does."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import test_devices
from conftest import ROOT, command, process, train_command
from stored import store
from tiny import FLAG, LRUNET

from lrunet_jax import ops
from lrunet_jax.runs.restoring import steps_in
from lrunet_jax.train import processes

# Five steps of an epoch, all of one size: one program less to compile.
FEW = ("--config.batch_size=256", "--config.validation=157")
STARTED: list[subprocess.Popen] = []
SECONDS = 240  # within which everything here ends


def start(count, *arguments, each=lambda index: (), **variables):
    """Starts so many processes, with the flags by which they find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    together = (f"--coordinator={address}", f"--num_processes={count}")
    running = [
        subprocess.Popen(
            [
                *(sys.executable, *arguments, *each(index), *together),
                *(f"--process_id={index}", "--heartbeat_timeout_seconds=20"),
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    STARTED.extend(running)
    return running


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    for one in STARTED:
        with one:
            one.kill()
    STARTED.clear()


def end(running):
    """Their exit statuses, and what each has printed, once all have ended."""
    texts = [one.communicate(timeout=SECONDS) for one in running]
    return [one.returncode for one in running], texts


def until_saved(workdir, running, steps=()):
    """Waits until there are other checkpoints than those of some steps."""
    deadline = time.monotonic() + SECONDS
    while steps_in(workdir / "checkpoints") == [*steps]:
        assert all(one.poll() is None for one in running), end(running)
        assert time.monotonic() < deadline
        time.sleep(0.1)


def trained():
    """The final arrays of a run in float64, of two steps."""
    # On CPU the `xla` lowering would take minutes in float64, and `cpu` would send 64
    # times as many messages.
    with ops.lowering("gpu"):
        state, *_ = test_devices.train_on(jax.devices(), "float64", 128)
    assert int(state.step) == 2
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def train_and_keep(path, *flags):
    """Trains and keeps the arrays; for one of several processes."""
    coordinator, count, index = (flag.rpartition("=")[2] for flag in flags)
    processes.join(coordinator, int(count), int(index), 10)
    jax.config.update("jax_enable_x64", True)
    arrays = trained()
    if processes.is_first():
        np.savez(path, *arrays)


CODE = "import sys, test_processes; test_processes.train_and_keep(*sys.argv[1:5])"


alone = functools.cache(trained)


def same_as_one(count, tmp_path):
    path = tmp_path / "several.npz"
    several = start(count, "-c", CODE, str(path), **test_devices.IMPORTING)
    expected = alone()
    statuses, texts = end(several)
    assert statuses == [0] * count, texts
    with np.load(path) as found:
        test_devices.assert_close(list(found.values()), expected)


@pytest.mark.usefixtures("x64")
def test_two_processes_end_as_one_does(tmp_path):
    same_as_one(2, tmp_path)


@pytest.mark.usefixtures("shallow")
def test_a_signal_to_one_stops_all_and_one_goes_on(tmp_path):
    flags = (FLAG, *FEW, "--config.checkpoint_minutes=0")
    flags += (f"--workdir={tmp_path / 'run'}",)
    running = start(2, "train.py", *flags, "--config.epochs=500")
    until_saved(tmp_path / "run", running)
    running[1].send_signal(signal.SIGTERM)
    statuses, ((printed, errors), (silent, _)) = end(running)
    assert statuses == [0, 0], errors
    (step,) = re.findall(r"stopped by a signal at step (\d+)", printed)
    assert "2 processes" in printed
    assert [line for line in silent.splitlines() if "[Gloo]" not in line] == []
    assert steps_in(tmp_path / "run" / "checkpoints")[-1] == int(step)
    epochs = int(step) // 5 + 1
    result = train_command(*flags, f"--config.epochs={epochs}")
    assert result.returncode == 0, result.stderr
    assert f"resumed  step {int(step):,}" in result.stdout


def refused(running):
    """The one line that the first process ends with; the others say nothing."""
    statuses, ((_, errors), *others) = end(running)
    assert statuses == [2] * len(running), (errors, others)
    assert all(error == "" for _, error in others)
    (line,) = errors.splitlines()
    return line


def test_what_differs_between_processes_is_named(tmp_path):
    flags = ("train.py", f"--workdir={tmp_path / 'run'}", FLAG)
    seed = lambda index: (f"--config.seed={index}",)
    line = refused(start(2, *flags, each=seed))
    host = socket.gethostname()
    assert line == (
        f"error: seed of process 1 on {host} is 1; it must be 0, as of the first one"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_bad_value_of_one_process_is_said_by_the_first(tmp_path):
    flags = ("train.py", f"--workdir={tmp_path / 'run'}", FLAG)
    elsewhere = lambda index: (f"--data_dir={tmp_path / str(index)}",)
    line = refused(start(2, *flags, "--config.dataset=cifar10", each=elsewhere))
    assert f"data_dir is '{tmp_path / '0'}', which lacks cifar10" in line
    wrong = lambda index: ("--config.batch_size=7",) * index
    line = refused(start(2, *flags, each=wrong))
    assert re.fullmatch(r"error: process 1 on .*: batch_size is 7; it must be .*", line)


@pytest.mark.slow
def test_a_workdir_that_the_processes_do_not_share_is_refused(tmp_path):
    mine = lambda index: (f"--workdir={tmp_path / str(index)}",)
    line = refused(start(2, "train.py", FLAG, each=mine))
    assert "which is not the same directory on " in line
    assert not (tmp_path / "1").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_four_processes_end_as_one_does(tmp_path):
    same_as_one(4, tmp_path)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_goes_on_to_the_same_bits(
    tmp_path,
):
    def digests(name):
        step = steps_in(tmp_path / name / "checkpoints")[-1]
        path = tmp_path / name / "checkpoints" / str(step) / "digest" / "metadata"
        return step, json.loads(path.read_text())["state"]

    flags = ("train.py", FLAG, *FEW, "--config.checkpoint_minutes=0")
    # Of two: on two cores four compile and wait for minutes.
    run = lambda name: start(2, *flags, f"--workdir={tmp_path / name}")
    statuses, texts = end(run("whole"))
    assert statuses == [0, 0], texts
    for victim in range(2):
        steps = steps_in(tmp_path / "killed" / "checkpoints")
        running = run("killed")
        until_saved(tmp_path / "killed", running, steps)
        running[victim].kill()
        began = time.monotonic()
        statuses, texts = end(running)
        assert time.monotonic() - began < 20 + 5  # the timeout, and some seconds
        assert statuses[victim] == -signal.SIGKILL
        assert 0 not in statuses, texts
    statuses, texts = end(run("killed"))
    assert statuses == [0, 0], texts
    assert digests("killed") == digests("whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--coordinator=here",
            "coordinator is 'here'; it must be 'auto', or HOST:PORT",
        ),
        ("--coordinator=a:70000", "coordinator is 'a:70000'; it must be 'auto', or"),
        ("--coordinator=a:1", "num_processes is 0; it must be at least 1"),
        (
            "--coordinator=a:1 --num_processes=2 --process_id=2",
            "process_id is 2; it must be in [0, 2), with num_processes 2",
        ),
        ("--coordinator=auto --num_processes=2", "num_processes is 2; it must be left"),
        (
            "--process_id=0",
            "process_id is 0; it must be left out, unless --coordinator",
        ),
        ("--heartbeat_timeout_seconds=0", "heartbeat_timeout_seconds is 0; it must be"),
    ],
)
def test_flags_of_processes_are_checked(flags, message):
    result = train_command(*flags.split())
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_process_that_never_comes_is_not_waited_for_for_ever(tmp_path):
    flags = (
        *("--coordinator=127.0.0.1:29876", "--num_processes=2", "--process_id=0"),
        *("--heartbeat_timeout_seconds=3", f"--workdir={tmp_path / 'run'}"),
    )
    result = process("train.py", *flags, timeout=60)
    assert result.returncode not in (0, None)
    assert not (tmp_path / "run").exists()


def test_auto_without_a_cluster_is_one_line(tmp_path):
    result = process("train.py", "--coordinator=auto", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert "coordinator is 'auto', by which this process can't join" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["evaluate", "convert", "results", "benchmark"])
def test_other_commands_run_in_one_process(name, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    result = command(name)
    assert result.returncode == 2
    assert result.stderr == (
        "error: SLURM_STEP_NUM_TASKS is '4'; it must be 1, as only train.py runs in "
        "several processes\n"
    )


@pytest.mark.slow
def test_two_processes_share_what_one_of_them_reads(tmp_path):
    """Held-out images, the best weights, given ones, frozen ones, and a trace."""
    store(tmp_path / "given")
    flags = (
        *LRUNET,
        *("--config.augment.size=16", *FEW, "--config.epochs=2", "--config.normalise"),
        *("--config.freeze=all_but_classifier", f"--profile={tmp_path / 'trace'}"),
        *(f"--config.init_from={tmp_path / 'given'}", f"--workdir={tmp_path / 'run'}"),
    )
    statuses, texts = end(start(2, "train.py", *flags))
    assert statuses == [0, 0], texts
    printed = texts[0][0]
    for words in (
        " held out and ",
        "frozen ",
        "init_from: ",
        "test accuracy ",
        "profile ",
    ):
        assert words in printed
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
