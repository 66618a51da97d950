"""Runs are averaged if they differ in nothing but the seed."""

import json
import os
import pathlib
import statistics

import pytest
from conftest import command

from lrunet_jax.errors import InputError
from lrunet_jax.runs.groups import mean_curve, read_groups
from lrunet_jax.runs.record import accuracy_of

N = "model.layer_reuse"


def test_seeds_are_averaged_and_other_configs_are_not(make_run):
    a, b, c = [0.5, 0.8, 0.7], [0.6, 0.7, 0.9], [0.5, 0.6, 0.8]
    groups = read_groups(
        [
            make_run("lru4-s0", a, **{N: 4}, seed=0),
            make_run("lru10-s0", a, **{N: 10}),
            make_run("lru4-s1", b, **{N: 4}, seed=1),
            make_run("lru4-s5", c, **{N: 4}, seed=5),
        ]
    )
    assert [group.label for group in groups] == ["lru4-s", "lru10-s0"]
    of_four, of_ten = groups
    assert of_four.last() == pytest.approx((0.8, statistics.stdev([0.7, 0.9, 0.8])))
    assert of_four.best() == pytest.approx((2.5 / 3, statistics.stdev([0.8, 0.9, 0.8])))
    assert of_ten.last() == (0.7, 0)
    assert of_ten.best() == (0.8, 0)
    curve = mean_curve(of_four.records(), accuracy_of)
    assert list(curve) == [1, 2, 3]
    assert curve[2] == pytest.approx((0.7, statistics.stdev([0.8, 0.7, 0.6])))


def test_a_curve_ends_where_the_first_run_does(make_run):
    paths = [make_run("s0", [0.5, 0.6, 0.7]), make_run("s1", [0.5, 0.6], seed=1)]
    (group,) = read_groups(paths)
    assert list(mean_curve(group.records(), accuracy_of)) == [1, 2]


def test_last_and_best_are_of_epochs_that_all_runs_have(make_run):
    paths = [make_run("s0", [0.5, 0.625, 0.75]), make_run("s1", [0.5, 0.375], seed=1)]
    (group,) = read_groups(paths)
    assert group.last().mean == 0.5
    assert group.best().mean == 0.5625
    assert "| 2 of 6 |" in command("results", *paths).stdout


def test_averaged_weights_count_where_there_are_any(make_run, tmp_path):
    path = make_run("ema", [0.5, 0.6])
    record = tmp_path / "ema" / "metrics.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    lines = [line | {"test_ema_accuracy": 0.9} for line in lines]
    record.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (group,) = read_groups([path])
    assert group.last().mean == 0.9


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a/0", "a/1", "b/0", "b/1"], ["a", "b"]),
        (["run1", "run2", "run3", "run4"], ["run1, run2", "run3, run4"]),
        (["0", "1", "x", "y"], ["0, 1", "x, y"]),
    ],
)
def test_labels_tell_groups_apart(make_run, names, labels):
    fields = [{N: 4}, {N: 4, "seed": 1}, {N: 5}, {N: 5, "seed": 1}]
    paths = [make_run(name, [0.5], **f) for name, f in zip(names, fields, strict=True)]
    assert [group.label for group in read_groups(paths)] == labels


def test_the_same_seed_twice_is_no_second_seed(make_run):
    path, again = make_run("a", [0.5]), make_run("b", [0.6])
    os.symlink(path, f"{path}-latest")
    for twice in (path, f"{path}-latest"):
        assert len(read_groups([path, twice])[0].runs) == 1
    with pytest.raises(InputError, match="of the same config and seed"):
        read_groups([path, again])


def test_the_table_has_mean_deviation_and_number_of_seeds(make_run):
    n1 = {N: 1}
    runs = [
        make_run("lru1-0", [0.5, 0.75, 0.25], **n1),
        make_run("lru1-1", [0.5, 0.875, 0.5], **n1, seed=1),
        make_run("lru4", [0.5], **{N: 4}),
    ]
    result = command("results", *runs, "--json")
    assert result.returncode == 0, result.stderr
    first, second = json.loads(result.stdout)
    assert (first["seeds"], second["seeds"]) == (2, 1)
    assert first["last"] == 0.375
    assert first["last_deviation"] == pytest.approx(0.25 / 2**0.5)
    assert first["best"] == 0.8125
    assert (first["published"], second["published"]) == (0.9117, None)
    assert (first["params"], first["macs"]) == (130_250, 2_460_672)
    table = command("results", *runs).stdout
    assert "| 37.50% ± 17.68 | 81.25% ± 8.84 | test set  | 91.17%" in table
    assert "| 50.00%" in table


def test_what_is_no_run_gets_one_line(make_run, tmp_path):
    good = make_run("good", [0.5])
    (tmp_path / "empty").mkdir()
    make_run("fresh", [])
    make_run("damaged", [0.5])
    (tmp_path / "damaged" / "metrics.jsonl").write_text('{"step": 1}\n[')
    make_run("other", [0.5])
    (tmp_path / "other" / "config.json").write_text("[]")
    edits = {
        "no_seed": ("config.json", '"seed": 0', '"sed": 0'),
        "no_epoch": ("metrics.jsonl", '"epoch": 1', '"epoc": 1'),
        "words": ("metrics.jsonl", '"test_accuracy": 0.5', '"test_accuracy": "x"'),
    }
    for name, (file, old, new) in edits.items():
        path = pathlib.Path(make_run(name, [0.5])) / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    beside = command("results", good, tmp_path / "fresh")  # it has just begun
    assert beside.returncode == 0
    assert beside.stderr == f"{tmp_path / 'fresh'} is left out: not tested yet\n"
    for name in ("nowhere", "empty", "damaged", "other", *edits):
        for run in (("results",), ("plot", f"--out={tmp_path / 'x.png'}")):
            if name == "nowhere" or run[0] == "results":
                result = command(*run, good, tmp_path / name)
                assert result.returncode == 2
                assert result.stderr.count("\n") == 1
                assert f"{name}', which can't be read" in result.stderr
    assert not (tmp_path / "x.png").exists()
