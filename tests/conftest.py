"""Commands, fixtures, and the numbers of the original where they are at hand."""

import contextlib
import gc
import importlib
import io
import json
import logging
import os
import pathlib
import runpy
import signal
import subprocess
import sys
from unittest import mock

# Many tests compile the same program, some of them in processes of their own, and the
# next time they are run again. Most programs are small, and worth keeping as well.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import numpy as np
import pytest
import tiny
from absl import app, flags
from jax.experimental.compilation_cache import compilation_cache

from configs import lrunet
from lrunet_jax import cli, ops
from lrunet_jax.models import (
    abstract_variables,
    mobilenet,
    mobilenet_v2,
    shufflenet,
    shufflenet_v2,
    top_level,
)
from lrunet_jax.runs import trouble

# Most of a test's time XLA compiles small programs. Without optimising, in one thread
# each, and in jax 0.10 with the older emitter of fused loops, it takes a quarter of the
# time.
ONE_THREAD = "--xla_cpu_parallel_codegen_split_count=1"
OLDER_EMITTER = "--xla_cpu_use_fusion_emitters=false"
if jax.__version_info__ >= (0, 11):  # which have one emitter
    OLDER_EMITTER = ""
OPTIMISING = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    # A worker of xdist has the flags that the process which began it has set.
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
    .replace(f"{ONE_THREAD} {OLDER_EMITTER}", "")
    .strip(),
}
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of other processes
    jax.config.update("jax_disable_most_optimizations", True)
    flags_of_xla = (OPTIMISING["XLA_FLAGS"], ONE_THREAD, OLDER_EMITTER)
    os.environ["XLA_FLAGS"] = " ".join(flags_of_xla)

ROOT = pathlib.Path(__file__).parent.parent
IN_CI = bool(os.environ.get("CI"))

SHALLOW = {
    mobilenet: {"STAGES": tiny.STAGES},
    mobilenet_v2: {"STAGES": ((1, 16, 1, 1), (6, 320, 2, 2))},
    shufflenet: {"BLOCKS": (2, 1, 1)},
    shufflenet_v2: {"BLOCKS": (2, 1, 1)},
}

WHOLE = mobilenet.STAGES

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("ci" if IN_CI else "here")


def process(*arguments, **options):
    """Runs Python with these arguments to its end, in a process of its own."""
    options = {"cwd": ROOT, "capture_output": True, "text": True} | options
    return subprocess.run([sys.executable, *arguments], check=False, **options)


def command(name, *arguments, cwd=ROOT):
    """Runs `python -m lrunet_jax.NAME ARGUMENTS...` to its end, in this process."""
    module = importlib.import_module(f"lrunet_jax.{name}")
    with fresh_flags():
        return _to_the_end(lambda: cli.run(module.main), name, *arguments, cwd=cwd)


def train_command(*arguments):
    """Runs `python train.py ARGUMENTS...` to its end, in this process."""
    script = str(ROOT / "train.py")
    with fresh_flags():
        return _to_the_end(
            lambda: runpy.run_path(script, run_name="__main__"), script, *arguments
        )


def files_of(directory):
    paths = pathlib.Path(directory).rglob("*")
    return sorted(path for path in paths if path.is_file())


def contents(directory):
    """What is in the files of a directory, by their paths."""
    return {path: path.read_bytes() for path in files_of(directory)}


def flipped_bits(directory, count):
    """Flips a bit of a file, `count` times in each, one after the other."""
    rng = np.random.default_rng(0)
    for path, content in contents(directory).items():
        for place in rng.choice(len(content), min(len(content), count), replace=False):
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(flipped))
            yield
        path.write_bytes(content)


def on_eight_devices(*, count: int = 8, **variables: str) -> dict[str, str]:
    """The environment of a process whose CPU is so many devices, with variables."""
    environment = os.environ | variables | {"JAX_PLATFORMS": "cpu"}
    flag = f"--xla_force_host_platform_device_count={count}"
    flags = f"{environment.get('XLA_FLAGS', '')} {flag}"
    # XLA has as many threads as devices. Where two collectives run at a time, each
    # device may hold a thread of one and wait for a thread of the other: for ever.
    return environment | {"XLA_FLAGS": flags, "NPROC": f"{8 * count}"}


def _is_library(module):
    return module.split(".")[0] in ("array_record", "grain")


@contextlib.contextmanager
def fresh_flags():
    """A context after which absl's flags are what they were."""
    app.define_help_flags()
    # Or the next file's code runs in it, where the one before has left its names.
    sys.modules.pop("config_config", None)
    known = set(flags.FLAGS)
    try:
        yield
    finally:
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - known:
            # A library that is imported here first keeps its flags.
            if not _is_library(flags.FLAGS.find_module_defining_flag(name)):
                delattr(flags.FLAGS, name)


def _to_the_end(function, *argv, cwd=ROOT):
    argv = list(map(str, argv))
    status, out, err = 0, io.StringIO(), io.StringIO()
    cached = jax.config.jax_enable_compilation_cache  # which `benchmark` turns off
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio", "gcsfs")]
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # ignored at the end
    handlers = {number: signal.getsignal(number) for number in stopping}
    levels = [logger.level for logger in loggers]
    compilation_cache.reset_cache()  # else its directory stays what it was
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
    ):
        try:
            function()
        except SystemExit as error:
            status = error.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            jax.config.update("jax_enable_compilation_cache", cached)
            compilation_cache.reset_cache()
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


# --- `pytest -m device`: see `test_device.py` ---------------------------------------


def of_devices(config):
    """Tells whether this is `pytest -m device`, no more and no less."""
    return config.option.markexpr.strip() == "device"


@pytest.hookimpl(tryfirst=True)  # before xdist's
def pytest_cmdline_main(config):
    if of_devices(config):
        # Each of several processes would take most of an accelerator's memory.
        config.option.numprocesses = 0
        # No backend is there yet to have read these.
        os.environ.update(OPTIMISING)
        jax.config.update("jax_disable_most_optimizations", False)


def pytest_ignore_collect(collection_path, config):
    # Other files may import what a machine with an accelerator does not have.
    other = collection_path.suffix == ".py" and collection_path.stem != "test_device"
    return True if of_devices(config) and other else None


def pytest_collection_modifyitems(config, items):
    if not of_devices(config):
        marked = [item for item in items if item.get_closest_marker("device")]
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)


def pytest_collection_finish(session):
    # What is there by now stays: looking at it each time took a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_sessionfinish():
    # pytest looks for what is left five times, and each takes a second.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    """Prints what the tests have noted as their `row`, as a table in Markdown."""
    if not of_devices(config) or config.option.collectonly:
        return
    write, device = terminalreporter.write_line, jax.devices()[0]
    reports = [
        report
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, ())
        if "::" in report.nodeid
    ]
    terminalreporter.section("on devices")
    write(
        f"{jax.device_count()} x {device.device_kind} ({jax.default_backend()}), "
        f"jax {jax.__version__}, lowering auto is {ops.resolve()}, products of float32 "
        f"at precision highest, XLA_FLAGS={os.environ['XLA_FLAGS'].strip()!r}\n"
    )
    write("| what | result | found | allowed | seconds |")
    write("|---|---|---|---|---:|")
    for report in sorted(reports, key=lambda report: report.start):
        what = report.nodeid.split("::test_")[-1].replace("_", " ")
        found, allowed = dict(report.user_properties).get("row", ("", ""))
        if report.skipped:
            found = report.longrepr[2].removeprefix("Skipped: ")
        seconds = f"{report.duration:.1f}"
        write(f"| {what} | {report.outcome} | {found} | {allowed} | {seconds} |")


@pytest.fixture
def row(record_property):
    """Notes what a test has found, and what is allowed, for the table."""
    return lambda found, allowed="": record_property("row", (found, allowed))


# --- Fixtures -----------------------------------------------------------------------


@pytest.fixture
def make_run(tmp_path):
    """Makes the workdir of a run with the given test accuracies, one an epoch."""

    def make(name, accuracies, argument="fashion_mnist", **fields):
        config = lrunet.get_config(argument)
        config.update_from_flattened_dict(fields)
        config.epochs = 6
        lines = [
            {
                "step": 10 * epoch,
                "epoch": epoch,
                "train_loss": 1 / epoch,
                "train_accuracy": accuracy - 0.125,
                "test_loss": 2 / epoch,
                "test_accuracy": accuracy,
            }
            for epoch, accuracy in enumerate(accuracies, start=1)
        ]
        workdir = tmp_path / name
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict()))
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (workdir / "metrics.jsonl").write_text(text)
        return str(workdir)

    return make


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """No pauses before something is read once more."""
    monkeypatch.setattr(trouble, "SECONDS_BETWEEN_TRIALS", (0.0, 0.0, 0.0))


@pytest.fixture
def optimised(monkeypatch):
    """Programs that are optimised, for tests in which they run for long.

    In processes of their own they are as users have them.
    """
    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    for name, value in OPTIMISING.items():
        monkeypatch.setenv(name, value)
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def terminal():
    """One that may go away: under nohup its signal is ignored, by children too."""
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, usual)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of golden numbers, checkpoints and prepared data sets."""
    path = pathlib.Path(os.environ.get("LRUNET_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        reason = f"{path} is not there; LRUNET_SHARED names another place"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@contextlib.contextmanager
def few_blocks():
    """Baselines with few blocks, but of every kind, which compile much faster."""
    of_models = abstract_variables, top_level  # which know nothing of the constants
    with contextlib.ExitStack() as stack:
        for function in of_models:
            function.cache_clear()
            stack.callback(function.cache_clear)
        for module, constants in SHALLOW.items():
            for name, value in constants.items():
                stack.enter_context(mock.patch.object(module, name, value))
        yield


@pytest.fixture
def shallow():
    with few_blocks():
        yield


@pytest.fixture(autouse=True)
def _whole_networks():
    """Notices a test that left a network shallow."""
    yield
    found, mobilenet.STAGES = mobilenet.STAGES, WHOLE
    assert found == WHOLE, "a config of tests/tiny.py without `shallow`"
