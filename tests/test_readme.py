"""Every command in the README runs."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def commands(start):
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = "".join(blocks).splitlines()
    return [line for line in lines if line.startswith(start)]


@pytest.mark.slow
def test_the_commands_on_trained_networks_run_one_after_the_other(
    shared, tmp_path, monkeypatch
):
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(shared / "checkpoints"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = commands("python -m lrunet_jax")
    assert len(found) >= 6
    for command in found:
        words = command.replace("DIR", str(shared / "tfds")).split()
        result = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stderr}"
        assert result.stdout


@pytest.mark.slow
def test_the_python_runs(shared, monkeypatch):
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(shared / "checkpoints"))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(code, names)
    assert names["logits"].shape == (8, 10)


def test_the_table_is_that_of_the_published_checkpoints():
    from lrunet_jax.published import NUM_IMAGES, PUBLISHED

    for name, entry in PUBLISHED.items():
        (row,) = re.findall(rf"^\| {re.escape(name)} .*\|$", README, re.M)
        cells = [cell.strip() for cell in row.split("|")]
        accuracy = f"{entry.correct / NUM_IMAGES:.2%}"
        assert cells[2] == entry.dataset
        assert cells[3] == cells[4] == accuracy
