"""Trained networks: opened from whatever holds them, and written again."""

import json
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import jax
import ml_collections
import numpy as np
import pytest
from conftest import ROOT, command, flipped_bits
from oracle import create_torch_model, needs_torch, torch

import lrunet_jax
from configs import digits
from lrunet_jax import data, evaluate
from lrunet_jax.errors import InputError
from lrunet_jax.train import loop
from lrunet_jax.weights import torch_format
from lrunet_jax.weights.converted import FORMAT
from lrunet_jax.weights.loading import open_model, save_model
from lrunet_jax.weights.stored_model import load_test_set


@pytest.fixture(scope="module")
def lru1(shared):
    return shared / "checkpoints" / "cifar10-lru1-ckpt-08391.t7"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of three epochs, to whose test accuracies the second is best."""
    config = digits.get_config()
    config.model = ml_collections.ConfigDict(
        {"name": "lrunet", "layer_reuse": 1, "width_mult": 0.125}
    )
    config.update(epochs=3, batch_size=479)
    config.augment.size = 16
    path = tmp_path_factory.mktemp("runs") / "tiny"
    accuracies = iter((0.25, 0.75, 0.5))
    tested = lambda *_: {"test_loss": 1.0, "test_accuracy": next(accuracies)}
    with mock.patch.object(loop, "compile_evaluation", return_value=(tested, 0)):
        loop.train_and_evaluate(config, str(path))
    return path


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same_variables(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- Opening ----------------------------------------------------------------------


@pytest.mark.slow
def test_golden_logits_through_load_and_apply_alone(shared):
    paths = sorted(shared.glob("checkpoints/*.t7"))
    assert len(paths) == 18
    with np.load(shared / "golden" / "images.npz") as images:
        for path in paths:
            model, variables = lrunet_jax.load(path)
            pixels = images[path.stem].astype(np.float32) / 255
            with jax.default_matmul_precision("highest"):
                logits = jax.jit(model.apply)(variables, pixels)
            with np.load(shared / "golden" / f"{path.stem}.npz") as golden:
                expected = golden["logits"]
            # The original's own logits move by 1.1e-5 with the batch's composition.
            assert np.abs(logits - expected).max() < 1e-4, path


@pytest.mark.slow
@needs_torch
def test_logits_of_a_file_that_no_golden_number_knows(tmp_path):
    torch.manual_seed(3)
    oracle = create_torch_model("shufflenet", 3, 10, 0.5, groups=4)
    for _ in range(5):  # until its statistics are its own
        oracle.train()(torch.rand(16, 3, 32, 32))
    torch.save(oracle.state_dict(), tmp_path / "mine.pth")
    model, variables = lrunet_jax.load(str(tmp_path / "mine.pth"))
    images = np.random.default_rng(0).uniform(size=(5, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = oracle.eval()(torch.from_numpy(images).movedim(3, 1)).numpy()
    logits = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_what_is_known_of_a_published_file(lru1, tmp_path):
    stored = open_model(lru1)
    assert stored.name == "cifar10-lru1"
    assert stored.arguments == {
        "name": "lrunet",
        "num_classes": 10,
        "width_mult": 1.0,
        "layer_reuse": 1,
    }
    assert (stored.dataset, stored.channels) == ("cifar10", 3)
    assert (stored.accuracy, stored.epoch) == (0.8391, 231)
    # It is known by its content, not by its name.
    shutil.copy(lru1, tmp_path / "other.t7")
    assert open_model(tmp_path / "other.t7").name == "cifar10-lru1"


def test_a_published_name_on_another_content_is_a_warning(lru1, tmp_path):
    content = bytearray(lru1.read_bytes())
    content[-5] ^= 1  # of the last tensor's numbers
    path = tmp_path / lru1.name
    path.write_bytes(content)
    with pytest.warns(
        UserWarning, match="name of a published file, but another sha256"
    ):
        assert open_model(path).name == lru1.stem


def test_a_run_gives_its_best_checkpoint_or_the_one_that_is_asked_for(workdir):
    stored = open_model(workdir)
    assert stored.accuracy == 0.75
    assert (stored.epoch, stored.counters) == (1, 2 * 3)  # 1,437 images at 479 a batch
    assert (stored.name, stored.dataset, stored.channels) == ("tiny", "digits", 1)
    for step in steps_of(workdir):
        by_step = open_model(workdir, step=step)
        assert by_step.counters == step
        by_path = open_model(workdir / "checkpoints" / str(step))
        assert_same_variables(by_path.variables, by_step.variables)
    first, last = (open_model(workdir, step) for step in steps_of(workdir)[-2:])
    assert not np.array_equal(
        first.variables["params"]["features_0"]["kernel"],
        last.variables["params"]["features_0"]["kernel"],
    )


def test_opening_a_run_leaves_it_as_it_is(workdir):
    before = sorted(str(path) for path in workdir.rglob("*"))
    open_model(workdir)
    assert sorted(str(path) for path in workdir.rglob("*")) == before


def test_what_cannot_be_opened_gets_one_line(workdir, lru1, tmp_path):
    (tmp_path / "empty").mkdir()
    one = np.ones(1, np.float32)
    torch_format.write(tmp_path / "list.pt", {"net": [1, 2], "step": 3})
    torch_format.write(tmp_path / "top.pt", [one])
    torch_format.write(tmp_path / "other.pt", {"net": {"a": one}})
    tensors = torch_format.read(lru1)
    torch_format.write(tmp_path / "acc.pt", tensors | {"acc": "high"})
    torch_format.write(tmp_path / "epoch.pt", tensors | {"epoch": [1]})
    for path, step, reason in (
        (
            tmp_path / "missing.t7",
            None,
            "must be a PyTorch file, a converted directory",
        ),
        ("cifar10-lru15", None, r"cifar10-lru14"),
        (tmp_path / "empty", None, "must be a converted directory, a run's workdir"),
        (tmp_path / "list.pt", None, "none of the five .* its keys are 'net', 'step'$"),
        (tmp_path / "top.pt", None, "none of the five networks; it holds nothing by"),
        (tmp_path / "other.pt", None, "its keys are 'net', and in net are 'a'$"),
        (tmp_path / "acc.pt", None, "acc is a str, and no number"),
        (tmp_path / "epoch.pt", None, "epoch is a list, and no number"),
        (workdir, 7777, r"step is 7777; it must be one of those in .*\[\d+, "),
        (lru1, 3, "step is 3; it must be left out"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            open_model(path, step)
        assert "\n" not in str(error.value)


def edited(tensors, **changes):
    """A published file's tree, with other tensors by the end of their names."""
    net = dict(tensors["net"])
    for name, value in changes.items():
        (key,) = (key for key in net if key.endswith(name.replace("_", ".")))
        net[key] = value
    return {**tensors, "net": net}


def test_hostile_shapes_and_numbers_get_one_line(lru1, tmp_path):
    tensors = torch_format.read(lru1)
    empty = lambda *shape: np.zeros(shape, np.float32)
    norms = {
        f"module.stage1.dw_bn_list.{i}.weight": np.zeros(1, np.float32)
        for i in range(1, 5000)
    }
    for tree, reason in (
        (edited(tensors, stage1_pw_weight=empty(2**20, 0)), "without a value"),
        (edited(tensors, features_0_weight=empty(0, 0, 3, 3)), "without a value"),
        (edited(tensors, classifier_4_weight=empty(3)), "of another shape or type"),
        (edited(tensors, stage1_pw_weight=empty(10**6)), "width_mult is 15625.0"),
        (tensors | {"net": tensors["net"] | norms}, "norms of 5000 iterations"),
        (tensors | {"acc": np.array(-(2**63))}, "acc is -9.2"),
        (tensors | {"acc": float("nan")}, "acc is nan"),
        (tensors | {"acc": 150.0}, r"acc is 150.0; it must be in \[0, 100\]"),
        (tensors | {"epoch": -5}, r"epoch is -5.0; it must be in \[0"),
        (tensors | {"acc": np.ones((2, 2))}, "acc is a ndarray, and no number"),
    ):
        torch_format.write(tmp_path / "x.pt", tree)
        with pytest.raises(InputError, match=reason) as error:
            open_model(tmp_path / "x.pt")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("arguments", []),
        ("arguments", {}),
        ("arguments", {"name": "lrunet", "width_mult": "a"}),
        ("arguments", {"name": "lrunet", "width_mult": 1e9}),
        ("arguments", {"name": "lrunet", "layer_reuse": 2.5}),
        ("channels", 0),
        ("channels", "a"),
        ("channels", 10**30),
        ("counters", "a"),
        ("counters", {"features.1": "x"}),
        ("accuracy", "high"),
        ("accuracy", 89.34),
        ("epoch", [1]),
        ("name", 3),
        ("dataset", None),
        ("unknown", 1),
        ("format", "new"),
        ("format", -1),
    ],
)
def test_a_converted_directory_edited_by_hand_gets_one_line(
    field, value, lru1, tmp_path
):
    save_model(open_model(lru1), str(tmp_path / "a"))
    path = tmp_path / "a" / "model" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match="can't be read: ") as error:
        open_model(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_directory_of_a_later_format_is_named_with_what_is_new_in_it(lru1, tmp_path):
    save_model(open_model(lru1), str(tmp_path / "a"))
    path = tmp_path / "a" / "model" / "metadata"
    facts = json.loads(path.read_text())
    assert facts["format"] == FORMAT
    path.write_text(
        json.dumps(facts | {"format": FORMAT + 1, "seed": 1, "classes": ["a"]})
    )
    shutil.rmtree(tmp_path / "a" / "digest")  # which would be of these
    with pytest.raises(InputError, match=r"format is 3, and only 2 is known") as e:
        open_model(tmp_path / "a")
    assert "unknown fields 'classes', 'seed'" in str(e.value)


def test_a_directory_s_parents_are_made(lru1, tmp_path):
    stored = open_model(lru1)
    save_model(stored, str(tmp_path / "new" / "sub" / "a"))
    assert open_model(tmp_path / "new" / "sub" / "a").name == stored.name
    assert [path.name for path in (tmp_path / "new" / "sub").iterdir()] == ["a"]


def test_what_a_directory_is_made_of_appears_whole_or_not_at_all(
    lru1, tmp_path, monkeypatch
):
    stored = open_model(lru1)

    def no_rename(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.rename", no_rename)
    with pytest.raises(InputError, match="can't be written: OSError: no space left"):
        save_model(stored, str(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


@needs_torch
def test_a_pytorch_file_that_is_not_published_does_not_say_what_it_learned(tmp_path):
    oracle = create_torch_model("mobilenet", 3, 10, 0.25)  # as on CIFAR-10
    torch.save(oracle.state_dict(), tmp_path / "mine.pt")
    stored = open_model(tmp_path / "mine.pt")
    assert stored.dataset == ""
    with pytest.raises(InputError, match=r"does not say .* with --dataset"):
        load_test_set(stored)


@pytest.mark.parametrize("name", ["config/metadata", "metrics/metrics"])
@pytest.mark.parametrize("text", ["[]", "{}", "{{{", "", '{"test_accuracy": 7}'])
def test_a_run_edited_by_hand_gets_one_line(name, text, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    for step in steps_of(workdir):
        (tmp_path / "run" / "checkpoints" / str(step) / name).write_text(text)
    with pytest.raises(InputError, match="can't be read: ") as error:
        open_model(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_named_in_one_line(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    step = steps_of(workdir)[-1]
    for path in (tmp_path / "run" / "checkpoints" / str(step)).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    result = command("evaluate", tmp_path / "run", f"--step={step}")
    assert result.returncode == 2
    assert re.match(rf"error: checkpoint {step} in .* can't be read: ", result.stderr)
    assert result.stderr.count("\n") == 1, result.stderr
    assert len(result.stderr) < 500


# --- Writing ----------------------------------------------------------------------


@pytest.mark.slow
@needs_torch
def test_all_published_go_to_orbax_and_back_with_their_bits(shared, tmp_path):
    paths = sorted(shared.glob("checkpoints/*.t7"))
    assert len(paths) == 18
    for path in paths:
        stored = open_model(path)
        save_model(stored, str(tmp_path / path.stem))
        converted = open_model(tmp_path / path.stem)
        assert converted._replace(variables=0) == stored._replace(variables=0)
        assert_same_variables(converted.variables, stored.variables)
        target = tmp_path / f"{path.stem}.pt"
        save_model(converted, str(target), module_prefix=True)
        first, last = torch_format.read(path), torch.load(target, weights_only=True)
        assert (last["acc"], last["epoch"]) == (first["acc"], first["epoch"])
        for name, tensor in first["net"].items():
            assert last["net"].pop(name).numpy().tobytes() == tensor.tobytes()
        assert all(name.endswith("num_batches_tracked") for name in last["net"])


@needs_torch
def test_the_original_s_classes_load_what_is_written_here(workdir, tmp_path):
    save_model(open_model(workdir), str(tmp_path / "weights.pt"))
    tree = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert set(tree) == {"net", "acc", "epoch"}
    stored = open_model(workdir)
    assert tree["acc"] == pytest.approx(100 * stored.accuracy)
    oracle = create_torch_model("lrunet", 1, 10, 0.125, layer_reuse=1).eval()
    oracle.load_state_dict(tree["net"], strict=True)
    assert int(tree["net"]["features.1.num_batches_tracked"]) == stored.counters
    images = np.random.default_rng(0).uniform(size=(4, 32, 32, 1)).astype(np.float32)
    model, variables = lrunet_jax.load(workdir)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(images).movedim(3, 1)).numpy()
    np.testing.assert_allclose(model.apply(variables, images), expected, atol=1e-4)


@needs_torch
def test_batch_counters_are_kept_one_by_one(tmp_path):
    oracle = create_torch_model("mobilenet", 3, 10, 0.25)
    oracle.features[3].bn1.num_batches_tracked.fill_(7)
    torch.save({"net": oracle.state_dict(), "acc": 10.0, "epoch": 1}, tmp_path / "a.pt")
    save_model(open_model(tmp_path / "a.pt"), str(tmp_path / "b"))
    save_model(open_model(tmp_path / "b"), str(tmp_path / "c.pt"))
    found = torch.load(tmp_path / "c.pt", weights_only=True)["net"]
    assert found.keys() == oracle.state_dict().keys()
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.usefixtures("x64")
def test_files_are_float32_where_float64_is_enabled(lru1, tmp_path):
    save_model(open_model(lru1), str(tmp_path / "lru1"))
    assert_same_variables(
        open_model(tmp_path / "lru1").variables, open_model(lru1).variables
    )


def test_a_target_that_exists_is_left_alone(lru1, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.pt").write_text("mine")
    stored = open_model(lru1)
    for name in ("there", "there.pt"):
        with pytest.raises(InputError, match=r"target is .* does not exist yet"):
            save_model(stored, str(tmp_path / name))
    assert (tmp_path / "there.pt").read_text() == "mine"
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(InputError, match="module_prefix is True; it must be left out"):
        save_model(stored, str(tmp_path / "directory"), module_prefix=True)


def test_a_link_that_leads_nowhere_is_left_alone(lru1, tmp_path):
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="target is"):
        save_model(open_model(lru1), str(tmp_path / "link.pt"))
    assert (tmp_path / "link.pt").is_symlink()


@needs_torch
def test_what_is_not_known_stays_unknown(tmp_path):
    oracle = create_torch_model("mobilenet", 3, 10, 0.25)
    torch.save(oracle.state_dict(), tmp_path / "bare.pt")
    stored = open_model(tmp_path / "bare.pt")
    assert (stored.accuracy, stored.epoch) == (None, None)
    save_model(stored, str(tmp_path / "again.pt"))
    assert set(torch.load(tmp_path / "again.pt")) == {"net", "acc", "epoch"}
    again = open_model(tmp_path / "again.pt")
    assert (again.accuracy, again.epoch) == (None, None)
    torch.save({"net": oracle.state_dict(), "acc": None}, tmp_path / "none.pt")
    assert open_model(tmp_path / "none.pt").accuracy is None


def test_a_network_is_described_by_its_name_and_arguments(workdir, lru1):
    assert open_model(lru1).describe() == (
        "lrunet (num_classes=10, width_mult=1.0, layer_reuse=1)"
    )
    assert open_model(workdir).describe().startswith("lrunet (")


def test_a_converted_directory_of_another_model_is_refused(lru1, tmp_path):
    stored = open_model(lru1)
    wrong = stored._replace(arguments=stored.arguments | {"layer_reuse": 2})
    save_model(wrong, str(tmp_path / "wrong"))
    with pytest.raises(InputError, match=r"can't be read: .*dw_bn_list"):
        open_model(tmp_path / "wrong")


def test_the_command_converts_both_ways(lru1, tmp_path):
    directory, file = tmp_path / "orbax", tmp_path / "weights.pt"
    result = command("convert", lru1, directory)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("cifar10-lru1: lrunet (num_classes=10, width_mult=")
    assert command("convert", directory, file).returncode == 0
    assert open_model(file).accuracy == 0.8391
    again = command("convert", lru1, directory)
    assert again.returncode == 2
    assert again.stderr.startswith("error: target is ")
    assert again.stderr.count("\n") == 1


def test_importing_the_package_imports_no_torch_nor_tfds():
    code = (
        "import sys, lrunet_jax; "
        "print({'torch', 'tensorflow_datasets', 'matplotlib'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    python = [sys.executable, "-c", code]
    assert subprocess.check_output(python, env=environment, text=True) == "set()\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [".pt", ""])
def test_weights_that_are_not_finite_are_refused_by_name(value, kind, lru1, tmp_path):
    stored = open_model(lru1)
    variables = jax.tree.map(np.copy, stored.variables)
    variables["params"]["stage2"]["pw"]["kernel"][0, 0, 1, 2] = value
    path = tmp_path / f"broken{kind}"
    save_model(stored._replace(variables=variables), str(path))
    reason = "params/stage2/pw/kernel in .* is not finite"
    with pytest.raises(InputError, match=reason):
        open_model(path)
    with pytest.raises(InputError, match=reason):
        lrunet_jax.load(str(path))
    assert_same_variables(open_model(path, allow_nonfinite=True).variables, variables)


def test_evaluate_looks_at_weights_that_are_not_finite_if_asked(
    lru1, tmp_path, monkeypatch
):
    stored = open_model(lru1)
    variables = jax.tree.map(np.copy, stored.variables)
    variables["params"]["stage1"]["pw"]["kernel"][0, 0, 0, 0] = np.nan
    path = tmp_path / "nan.pt"
    save_model(stored._replace(variables=variables), str(path))
    images = np.zeros((10, 32, 32, 3), np.uint8)
    split = data.Split(images, np.arange(10, dtype=np.int32))
    few = lambda *_: ("cifar10", tuple("abcdefghij"), split)
    monkeypatch.setattr(evaluate, "load_test_set", few)
    arguments = ("evaluate", path, "--dataset=cifar10", "--json")
    refused = command(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "params/stage1/pw/kernel in" in refused.stderr
    allowed = command(*arguments, "--allow_nonfinite")
    assert (allowed.returncode, allowed.stderr) == (0, "")
    assert json.loads(allowed.stdout)["loss"] is None  # JSON has no NaN


@pytest.mark.slow
def test_a_flipped_bit_in_a_converted_directory_is_seen(lru1, tmp_path):
    path = tmp_path / "lru1"
    save_model(open_model(lru1), str(path))
    intact = open_model(path)
    outcomes = {"read": 0, "named": 0}
    for _ in flipped_bits(path, 8):
        try:
            found = open_model(path)
        except InputError:
            outcomes["named"] += 1
            continue
        outcomes["read"] += 1
        assert_same_variables(found.variables, intact.variables)
        assert found._replace(variables=0) == intact._replace(variables=0)
    assert min(outcomes.values()) > 10, outcomes


def test_a_converted_directory_without_a_digest_is_called_unverified(
    lru1, tmp_path, capsys
):
    save_model(open_model(lru1), str(tmp_path / "lru1"))
    assert capsys.readouterr().err == ""
    open_model(tmp_path / "lru1")
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "lru1" / "digest")
    open_model(tmp_path / "lru1")
    assert capsys.readouterr().err.endswith("lru1 is unverified: it has no digest\n")


def test_what_evaluate_could_not_read_is_not_written(lru1, tmp_path):
    stored = open_model(lru1)
    for wrong in ({"accuracy": 1.5}, {"epoch": -5}, {"accuracy": float("nan")}):
        for name in ("a.pt", "a"):
            with pytest.raises(InputError, match=f"{next(iter(wrong))} is "):
                save_model(stored._replace(**wrong), str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
