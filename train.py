"""Trains a network.

    python train.py
    python train.py --config=configs/lrunet.py:cifar10 --config.model.layer_reuse=14

Started again with the same --workdir, it resumes from the latest checkpoint.
"""

import pathlib
import sys

import jax
from absl import flags

from lrunet_jax import train_and_evaluate
from lrunet_jax.cli import parse_flags, run
from lrunet_jax.output import drop_unwritten
from lrunet_jax.train.processes import join
from lrunet_jax.train.signals import ignore_stop_signals

WORKDIR = flags.DEFINE_string(
    "workdir", "", "Directory of the run; by default runs/DATASET-MODEL."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Directory of TFDS, by default TFDS_DATA_DIR, or of pictures."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "Where several processes train together: 'auto' on a TPU pod and under SLURM, or "
    "HOST:PORT of the first process.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "With --coordinator=HOST:PORT: how many."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", -1, "With --coordinator=HOST:PORT: which one this is, from 0."
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout_seconds",
    100,
    "After which a process that is silent ends the others.",
)
PROFILE = flags.DEFINE_string(
    "profile", "", "Directory for a trace of five steps, by jax.profiler."
)
COMPILATION_CACHE = flags.DEFINE_bool(
    "compilation_cache", True, "Keep compiled programs in the user's cache."
)


def main() -> None:
    """Runs what the flags say."""
    configs = pathlib.Path(__file__).with_name("configs")
    config = parse_flags(sys.argv, default_config=str(configs / "digits.py"))
    if not COMPILATION_CACHE.value:
        jax.config.update("jax_enable_compilation_cache", False)
    join(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        HEARTBEAT_TIMEOUT.value,
    )
    dataset = config.dataset.replace("/", "-")
    workdir = WORKDIR.value or f"runs/{dataset}-{config.model.name}"
    train_and_evaluate(config, workdir, DATA_DIR.value, PROFILE.value)
    ignore_stop_signals()
    drop_unwritten(sys.stdout)  # what it printed is in the workdir as well


if __name__ == "__main__":
    run(main, in_several=True)
