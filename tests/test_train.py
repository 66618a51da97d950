"""The command line: every mistake gets one line and exit status 2."""

import os
import re

import pytest
from conftest import ROOT, fresh_flags, on_eight_devices, process, train_command
from tiny import FLAG

from configs import digits
from lrunet_jax import cli, train_and_evaluate
from lrunet_jax.errors import InputError
from lrunet_jax.runs.config import flatten
from lrunet_jax.train.validate import FIELDS


def test_help_is_no_failure():
    result = train_command("--help")
    assert result.returncode == 0
    for flag in ("--config", "--data_dir", "--workdir"):
        assert f"\n  {flag}: " in result.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wrkdir=x"], "wrkdir"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config=nowhere.py"], "there is no file nowhere.py"),
        (["--config"], "--config can't be read"),
        (["--flagfile=nowhere"], "Unable to open flagfile"),
        (["--flagfile=tests/earlier/run.tar.xz"], "--flagfile can't be read: 'utf-8'"),
        (["--flagfile=LICENSE"], "unexpected argument 'MIT License'"),
        (["--config=configs/lrunet.py:mnist"], "'mnist' is none of cifar10, cifar100"),
        (["--config.decay_of=biases"], "decay_of is 'biases'"),
        (["--config.dtype=float16"], "dtype is 'float16'"),
        (["--config.label_smoothing=1.0"], "label_smoothing is 1.0; it must be in [0"),
        (["--config.mixup=-0.2"], "mixup is -0.2"),
        (["--config.init_from=nowhere.t7"], "path is 'nowhere.t7'"),
        (["--config.freeze=all"], "freeze is 'all'; it must be one of ('', 'all_but_"),
        (["--config.model.layer_ruse=3"], "did you mean 'layer_reuse'"),
        (["--config.model.lowering=cpu"], "config has no field 'model.lowering'"),
        (["--config.lowering=mapped"], "lowering is 'mapped'; known are auto, cpu"),
        (["--config.seed=99999999999999999999"], "seed is 99999999999999999999"),
        (["--config.seed=4294967296"], "seed is 4294967296; it must be in [0, 2 to"),
        (["--config.learning_rate=inf"], "learning_rate is inf"),
        (["--config.learning_rate=nan"], "learning_rate is nan"),
        (["--config.learning_rate=1e39"], "learning_rate is 1e+39"),
        (["--config.weight_decay=inf"], "weight_decay is inf"),
        (["--config.decay_factor=inf"], "decay_factor is inf"),
        (["--config.warmup_epochs=inf"], "warmup_epochs is inf"),
        (["--config.mixup=inf"], "mixup is inf"),
        (["--config.mixup=1e-38"], "mixup is 1e-38; it must be 0, or at least"),
        (
            ["--config.momentum=0.99999999999"],
            "momentum is 0.99999999999; it must be in",
        ),
        (["--config.ema_decay=0.99999999999"], "ema_decay is 0.99999999999"),
        (
            ["--config.label_smoothing=0.99999999999"],
            "label_smoothing is 0.99999999999",
        ),
        (["--config.model.drop=0.99999999999"], "model.drop is 0.99999999999"),
        (["--config.augment.rotation=180.5"], "augment.rotation is 180.5"),
        (
            ["--config.augment.padding=33"],
            "augment.padding is 33; it must be at most 32",
        ),
        (["--config.batch_size=1438"], "batch_size is 1438; it must be at most 1437"),
        ([f"--config.decay_epochs=(1{'0' * 400},)"], "decay_epochs is (1000"),
        (["--config.decay_epochs=(1e999,)"], "decay_epochs is (inf,)"),
        (["--config.epochs=99999999999"], "epochs is 99999999999; it must be at most"),
        (["--config.model.layer_reuse=100000000"], "layer_reuse is 100000000"),
        (["--config.batch_size=many"], "batch_size is 'many'; it must be of type int"),
        (["--config.augment.flip=maybe"], "augment.flip is 'maybe'"),
        (["--config.dataset=cifar11"], "did you mean 'cifar10'"),
        (["--config.model.name=lrnet"], "did you mean 'lrunet'"),
        (["--config.model.layer_reuse=0"], "model.layer_reuse is 0"),
        (["--config.model.width_mult=0.3"], "model.width_mult is 0.3"),
        (["--config.learning_rate=-0.1"], "learning_rate is -0.1"),
        (["--config.epochs=0"], "epochs is 0; it must be at least 1"),
        (["--config.batch_size=0"], "batch_size is 0"),
        (["--config.decay_epochs=soon"], "decay_epochs"),
        (["--config.schedule=step"], "schedule is 'step'"),
        (["--config.matmul_precision=low"], "matmul_precision is 'low'"),
        (["--config.augment.size=64"], "augment.size is 64; it must be at most 32"),
        (["--workdir=LICENSE/run"], "workdir is 'LICENSE/run', which can't be used"),
        (["--config.dataset=cifar10", "--data_dir=configs"], "lacks cifar10"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(flags, message, tmp_path):
    if not any(flag.startswith("--workdir") for flag in flags):
        flags = [*flags, f"--workdir={tmp_path / 'run'}"]
    result = train_command(*flags)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", b""),
        ("config.json", b"[1]"),
        ("config.json", b"\xff\x00"),
        ("config.json", b"[" * 100_000),
        ("config.json", b'{"model": {"lowering": ["a"]}}'),
        ("metrics.jsonl", b"hello"),
        ("metrics.jsonl", b"\xff\x00"),
        ("metrics.jsonl", b"[1]"),
        ("metrics.jsonl", b'{"epoch": 1}'),
        ("metrics.jsonl", b'{"step": "a"}'),
    ],
)
def test_a_workdir_edited_by_hand_gets_one_line_and_stays(name, text, tmp_path):
    (tmp_path / name).write_bytes(text)
    config = digits.get_config()
    config.model.update(layer_reuse=1, width_mult=0.125)
    with pytest.raises(InputError) as error:
        train_and_evaluate(config, str(tmp_path))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / name).read_bytes() == text


def test_a_field_that_is_missing_is_named(tmp_path):
    config = digits.get_config()
    assert {name for name, _ in flatten(config) if "model." not in name} | {
        "model.name"
    } == FIELDS
    del config.lowering
    with pytest.raises(InputError, match="config has no field 'lowering'; configs"):
        train_and_evaluate(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_do_not_divide_is_refused(tmp_path):
    flags = ["--config.batch_size=60", f"--workdir={tmp_path}"]
    result = process("train.py", *flags, env=on_eight_devices())
    assert result.returncode == 2
    assert "batch_size is 60; it must be a multiple of the 8 devices" in result.stderr


def test_fields_may_stand_in_a_flagfile(tmp_path):
    path = tmp_path / "flags"
    path.write_text(
        "# a comment\n--config=configs/lrunet.py:cifar10\n--config.batch_size=0\n"
    )
    refused = lambda *flags: train_command(*flags).stderr
    assert refused(f"--flagfile={path}").startswith("error: batch_size is 0;")
    assert refused("--flagfile", path).startswith("error: batch_size is 0;")
    # The last one holds, as absl has it.
    before = refused("--config.batch_size=-1", f"--flagfile={path}")
    after = refused(f"--flagfile={path}", "--config.batch_size=-1")
    assert before.startswith("error: batch_size is 0;")
    assert after.startswith("error: batch_size is -1;")


def test_the_command_line_s_config_goes_before_a_flagfile_s(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--config=configs/nowhere.py\n--config.model.width_mult=-1\n")
    for flags in (
        (f"--flagfile={path}", "--config=configs/mobilenet.py:cifar100"),
        ("--config", "configs/mobilenet.py:cifar100", f"--flagfile={path}"),
    ):
        result = train_command(*flags, "--data_dir=nowhere")
        assert result.stderr.startswith("error: model.width_mult is -1.0; "), flags
    assert "there is no file configs/nowhere.py" in (
        train_command(f"--flagfile={path}").stderr
    )


def test_none_is_an_empty_text():
    path = str(ROOT / "configs" / "digits.py")
    with fresh_flags():
        config = cli.parse_flags(["train.py", "--config.init_from=None"], path)
    assert config.init_from == ""


def test_a_config_that_gives_up_is_a_failure(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("import sys\nsys.exit(3)\n")
    assert train_command(f"--config={path}").returncode == 3


def test_a_tuple_is_given_in_quotes():
    result = train_command("--config.decay_epochs=(20, -25)")
    assert result.stderr.startswith("error: decay_epochs is (20, -25); it must be ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("def get_config(:", "can't be read: SyntaxError: invalid syntax"),
        ("import nosuch", "can't be read: ModuleNotFoundError: No module .*'nosuch'"),
        ("x = 1", "can't be read: module .* has no attribute 'get_config'"),
        ("def get_config(): raise KeyError('b')", "can't be read: KeyError: 'b'"),
        ("def get_config(): return {'a': 1}", "gives a dict; it must be a ConfigDict"),
        ("def get_config(): pass", "gives a NoneType; it must be a ConfigDict"),
    ],
)
def test_a_broken_config_file_gets_one_line(content, reason, tmp_path):
    (tmp_path / "mine.py").write_text(content)
    flags = (f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}")
    result = train_command(*flags)
    assert result.returncode == 2
    assert re.fullmatch(f"error: --config {reason}.*\n", result.stderr), result.stderr


@pytest.mark.parametrize("name", ["epochs.foo", "model.layer_reuse.foo", ""])
def test_a_field_within_a_number_gets_one_line(name):
    result = train_command(f"--config.{name}=1")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --config can't be read: ")
    assert result.stderr.count("\n") == 1


def test_a_field_may_stand_before_its_config():
    result = train_command("--config.epochs=0", "--config=configs/mobilenet.py")
    assert result.stderr == "error: epochs is 0; it must be at least 1\n"


def test_it_runs_from_anywhere(tmp_path):
    result = process(ROOT / "train.py", "--config.epochs=0", cwd=tmp_path)
    assert result.stderr == "error: epochs is 0; it must be at least 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "variable", "kept"),
    [
        ([], "true", True),
        (["--nocompilation_cache"], "true", False),
        ([], "false", False),
    ],
)
def test_compiled_programs_are_kept_in_the_user_s_cache(
    flags, variable, kept, tmp_path
):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["JAX_ENABLE_COMPILATION_CACHE"] = variable
    short = (FLAG, "--config.epochs=1", "--config.batch_size=479")
    flags = (*short, *flags, f"--workdir={tmp_path / 'run'}")
    result = process("train.py", *flags, env=environment)
    assert result.returncode == 0, result.stderr
    assert any((tmp_path / "cache").rglob("jit_call*")) == kept
