"""Every command in the README runs."""

import glob
import re
import shlex
import shutil

import pytest
from conftest import ROOT, command, train_command
from oracle import needs_torch
from PIL import Image

from lrunet_jax import benchmark, compare, evaluate
from lrunet_jax.data import Split, load_split
from lrunet_jax.data.digits import Digits
from lrunet_jax.weights.stored_model import load_test_set

README = (ROOT / "README.md").read_text()


def commands(start, text=README):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return re.findall(rf"{start}[^'\n]*", "".join(blocks))


def first_images(*arguments):
    name, classes, split = load_test_set(*arguments)
    return name, classes, Split(split.images[:64], split.labels[:64])


@pytest.mark.slow
@needs_torch
def test_the_commands_run_one_after_the_other(shared, make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(shared / "checkpoints"))
    for module in (compare, evaluate):  # all images of all networks are test_compare's
        monkeypatch.setattr(module, "load_test_set", first_images)
    short = dict.fromkeys(benchmark.TURN_SECONDS, 0.1)
    monkeypatch.setattr(benchmark, "TURN_SECONDS", short)
    timed = benchmark.benchmark
    once = lambda *args, **options: timed(*args, **options | {"rounds": 1})
    monkeypatch.setattr(benchmark, "benchmark", once)
    make_run("runs/lru4", [0.5, 0.75])
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(
        shared / "checkpoints" / "cifar10-mobilenet-025x-ckpt-08472.t7",
        tmp_path / "mine.pt",
    )
    pictures = load_split("cifar10", "test", str(shared / "tfds")).images
    (tmp_path / "pictures").mkdir()
    for name in ("cat.jpg", "pictures/one.png", "pictures/two.bmp"):
        Image.fromarray(pictures[0]).resize((90, 120)).save(tmp_path / name)
    found = commands("python -m lrunet_jax")
    found = [line for line in found if "PICTURES" not in line]  # the reader's own
    assert len(found) >= 12
    for line in found:
        line = line.replace("DIR", str(shared / "tfds"))
        line = line.replace("v5e:2x4", "cpu:1")  # CI has the TPU's compiler as well
        _, _, module, *words = shlex.split(line)
        arguments = []
        for word in words:  # as a shell expands them
            arguments += glob.glob(word, root_dir=tmp_path) or [word]
        result = command(module.removeprefix("lrunet_jax."), *arguments, cwd=tmp_path)
        assert result.returncode == 0, f"{line}: {result.stderr}"
    for name in ("runs.png", "mistakes.png", "predictions.png"):
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(("page", "least"), [("README.md", 3), ("docs/launch.md", 7)])
def test_the_training_commands_are_understood(page, least, monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: None)
    found = commands("python train.py", (ROOT / page).read_text())
    assert len(found) >= least
    for line in found:
        _, _, *words = shlex.split(line)
        result = train_command(*words, "--config.epochs=0")
        assert result.stderr == "error: epochs is 0; it must be at least 1\n"


@pytest.mark.slow
def test_the_python_runs(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LRUNET_CHECKPOINTS", str(shared / "checkpoints"))
    monkeypatch.chdir(tmp_path)
    read = Digits.read
    few = lambda *args: tuple(array[:128] for array in read(*args))
    monkeypatch.setattr(Digits, "read", few)
    first, second, third = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(first, names)
    assert names["logits"].shape == names["shares"].shape == (8, 10)
    assert "ShuffleNet Summary" in capsys.readouterr().out
    exec(second, names)
    assert names["state"].epoch == 1
    assert names["model"].layer_reuse == 2
    assert (tmp_path / "runs" / "notebook" / "metrics.jsonl").exists()
    exec(third, names)
    assert (tmp_path / "runs" / "arrays" / "metrics.jsonl").exists()


def test_the_table_is_that_of_the_published_checkpoints():
    from lrunet_jax.weights.published import NUM_IMAGES, PUBLISHED

    results = README.partition("## Results")[2].partition("\n## ")[0]
    for name, entry in PUBLISHED.items():
        (row,) = re.findall(rf"^\| {re.escape(name)} .*\|$", results, re.M)
        cells = [cell.strip() for cell in row.split("|")]
        accuracy = f"{entry.correct / NUM_IMAGES:.2%}"
        assert cells[2] == entry.dataset
        assert cells[3] == cells[4] == accuracy


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md"),
        *("docs/devices.md", "docs/launch.md", "docs/speed.md"),
    ],
)
def test_nothing_is_left_to_be_filled_in(name):
    assert re.findall(r"@[A-Z0-9]+@|TODO|FIXME", (ROOT / name).read_text()) == []


@pytest.mark.parametrize("page", ["README.md", "docs/devices.md", "docs/launch.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = set(re.findall(r"\]\((?!https?:)([^)]+)\)", text))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = [
                re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings
            ]
            assert anchor in slugs, link
