"""Times a model's training step and its inference.

    python -m lrunet_jax.benchmark --model=lrunet --layer_reuse=8 --batch_size=256
    python -m lrunet_jax.benchmark --all --torch

The training step is that of `train.py`, on random images that are already on the
device: batch, augmentation, forward, backward, update. With --torch, PyTorch takes
turns with it in a process of its own: an eager step without augmentation, in
channels_last, with as many threads.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from lrunet_jax import ops
from lrunet_jax.cli import (
    ArgumentParser,
    add_model_fields,
    print_table,
    require_torch,
    run,
)
from lrunet_jax.data import dataset_info
from lrunet_jax.errors import require
from lrunet_jax.models import create_model, list_models, model_fields
from lrunet_jax.train.epoch import SECONDS_PER_CALL, steps_per_call
from lrunet_jax.train.validate import DTYPES
from lrunet_jax.weights.published import PUBLISHED
from lrunet_jax.workload import (
    MAX_COUNT,
    Timed,
    Workload,
    our_workload,
    random_split,
    torch_workload,
)

# A turn's. A device call makes as many steps as one of `train.py`, as on CPU each call
# gets fresh memory; for inference they are many batches, as those of `evaluate`.
TURN_SECONDS = {"step": SECONDS_PER_CALL, "inference": 1.0, "single": 0.25}


def benchmark(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    batch_size: int = 256,
    rounds: int = 5,
    dtype: str = "float32",
    torch_arguments: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Times `model`, and PyTorch in turns with it.

    A turn is as many steps as take TURN_SECONDS here, at most MAX_COUNT; PyTorch makes
    the same number.

    Args:
      model: the network.
      image_shape: (H, W, channels).
      batch_size: images per step.
      rounds: how often each is timed, after a warm-up.
      dtype: to compute in.
      torch_arguments: of `create_torch_model`; None to leave PyTorch out.

    Returns:
      `step_seconds`, `inference_seconds` of a batch and `single_seconds` of one image
      as medians, each with its 25 and 75 % quantiles (`step_quartiles`);
      `compile_seconds` and `temp_bytes` of the training step's program. With PyTorch
      also its medians (`torch_step_seconds`), and the median of the rounds' ratios,
      PyTorch's over ours (`step_ratio`), with their quantiles (`step_ratio_quartiles`).
    """
    split = random_split(model, batch_size, image_shape)
    ours, variables, figures = our_workload(model, split, dtype)
    workloads = [ours]
    if torch_arguments is not None:
        workloads.append(torch_workload(torch_arguments, variables, split))

    for name in Workload._fields:
        functions = [getattr(workload, name) for workload in workloads]
        mine, *others = _take_turns(functions, rounds, TURN_SECONDS[name])
        figures[f"{name}_seconds"] = statistics.median(mine)
        figures[f"{name}_quartiles"] = _quartiles(mine)
        for theirs in others:
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            figures[f"torch_{name}_seconds"] = statistics.median(theirs)
            figures[f"{name}_ratio"] = statistics.median(ratios)
            figures[f"{name}_ratio_quartiles"] = _quartiles(ratios)
    return figures


def _take_turns(
    functions: Sequence[Timed], rounds: int, turn_seconds: float
) -> list[list[float]]:
    """The seconds that each function takes per time, in each round."""
    for function in functions:
        function(1)  # not counted
    count = 1
    for _ in range(2):  # of many, each takes less than one alone
        once = _seconds(functions[0], count) / count
        count = min(steps_per_call(once, turn_seconds), MAX_COUNT)
    turns = [[_seconds(f, count) / count for f in functions] for _ in range(rounds)]
    return [list(of_one) for of_one in zip(*turns, strict=True)]


def _seconds(function, count):
    began = time.perf_counter()
    function(count)
    return time.perf_counter() - began


def _quartiles(values):
    return np.quantile(values, (0.25, 0.75)).tolist()


def main() -> None:
    """Reads the arguments and prints the figures."""
    # `compile_seconds` is of a compilation.
    jax.config.update("jax_enable_compilation_cache", False)
    parser = ArgumentParser(
        prog="python -m lrunet_jax.benchmark", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="lrunet", choices=list_models())
    parser.add_argument(
        "--all", action="store_true", help="the published networks, and not --model"
    )
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--lowering", default="auto", help="of the operators")
    parser.add_argument("--torch", action="store_true", help="PyTorch takes turns")
    parser.add_argument("--json", action="store_true", help="print JSON")
    known, _ = parser.parse_known_args()
    add_model_fields(parser, known.model)
    args = parser.parse_args()
    for name in ("batch_size", "rounds"):
        require(getattr(args, name) >= 1, name, getattr(args, name), "at least 1")
    if args.all:
        for field, default in {"model": "lrunet", **model_fields("lrunet")}.items():
            value = getattr(args, field, default)
            require(value == default, field, value, "left out with --all")
    if args.torch:
        platform = jax.default_backend()
        require(platform == "cpu", "platform", platform, "cpu, to compare with --torch")
        require(args.dtype == "float32", "dtype", args.dtype, "float32 with --torch")
        require(args.rounds >= 5, "rounds", args.rounds, "at least 5 with --torch")
        require_torch()

    lowering = ops.resolve(args.lowering)
    device = jax.devices()[0]
    rows: list[dict[str, Any]] = []
    for name, arguments, image_shape in _networks(args):
        if args.all:  # most of an hour, with PyTorch
            print(f"{len(rows) + 1}/{len(PUBLISHED)} {name}", file=sys.stderr)
        model = create_model(**arguments)
        highest = jax.default_matmul_precision("highest")
        with ops.lowering(args.lowering), highest:
            figures = benchmark(
                model,
                image_shape,
                batch_size=args.batch_size,
                rounds=args.rounds,
                dtype=args.dtype,
                torch_arguments=arguments if args.torch else None,
            )
        rows.append(
            {
                "name": name,
                "model": arguments["name"],
                "batch_size": args.batch_size,
                **figures,
                "lowering": lowering,
                "device": f"{jax.device_count()} x {device.device_kind} "
                f"({device.platform})",
            }
        )
    if args.json:
        print(json.dumps(rows if args.all else rows[0]))
    elif args.all:
        print_table([_table_row(row) for row in rows])
    else:
        _print_figures(rows[0])


def _networks(args):
    """The networks to time: name, arguments of `create_model`, image shape."""
    if not args.all:
        fields = model_fields(args.model)
        arguments = {field: getattr(args, field) for field in fields}
        yield args.model, {"name": args.model, **arguments}, (32, 32, 3)
        return
    for name, entry in PUBLISHED.items():
        yield name, entry.model_arguments, dataset_info(entry.dataset).image_shape


def _table_row(row):
    printed: dict[str, Any] = {"network": row["name"]}
    for name in ("step", "inference", "single"):
        printed[f"{name} ms"] = round(1000 * row[f"{name}_seconds"], 1)
        if f"{name}_ratio" in row:
            printed[f"{name} ratio"] = _ratio(row, name)
    printed["compile s"] = round(row["compile_seconds"], 1)
    printed["temporary MB"] = round(row["temp_bytes"] / 1e6)
    return printed


def _print_figures(row):
    images = {"step": row["batch_size"], "inference": row["batch_size"], "single": 1}
    for name, count in images.items():
        seconds = row[f"{name}_seconds"]
        low, high = row[f"{name}_quartiles"]
        line = f"{name:10} {seconds:.4f} s ({low:.4f} to {high:.4f})   "
        line += f"{count / seconds:,.0f} images/s"
        if f"{name}_ratio" in row:
            line += f"   PyTorch / here {_ratio(row, name)}"
        print(line)
    print(f"compile    {row['compile_seconds']:.1f} s")
    print(f"temporary  {row['temp_bytes'] / 1e6:,.0f} MB")
    print(f"lowering   {row['lowering']} on {row['device']}")


def _ratio(row, name):
    low, high = row[f"{name}_ratio_quartiles"]
    return f"{row[f'{name}_ratio']:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    run(main)
