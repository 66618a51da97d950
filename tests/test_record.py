"""The record of a run."""

import json

from etils import epath

from lrunet_jax.runs.record import Record


def line(step):
    return {
        "step": step,
        "epoch": step // 10,
        "train_loss": 1 / step,
        "train_accuracy": 0.5,
    }


def test_what_a_resumed_run_has_not_done_is_cut_off(tmp_path):
    workdir = epath.Path(tmp_path)
    record = Record(workdir, step=0)
    for step in (10, 20, 30):
        record.append(line(step))
    record.close()
    record = Record(workdir, step=20)
    record.append(line(31))
    record.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(text)["step"] for text in text.splitlines()] == [10, 20, 31]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.jsonl", "tensorboard"}
