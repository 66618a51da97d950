"""Times a model's training step and its inference.

    python -m lrunet_jax.benchmark --model=lrunet --layer_reuse=8 --batch_size=256
    python -m lrunet_jax.benchmark --all --torch

The training step is that of `train.py`, on random images that lie on the device:
batch, augmentation, forward, backward, update. With --torch, PyTorch takes turns with
it, in a process of its own: its eager step, without augmentation, in channels_last on
as many threads.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn
from jax import lax

from lrunet_jax import data
from lrunet_jax.command import add_model_fields, print_table, require_torch, run
from lrunet_jax.config import DTYPES
from lrunet_jax.epoch import SECONDS_PER_CALL, steps_per_call
from lrunet_jax.errors import require
from lrunet_jax.models import create_model, list_models, model_fields
from lrunet_jax.ops import resolve
from lrunet_jax.optim import create_optimizer
from lrunet_jax.published import PUBLISHED
from lrunet_jax.state import create_train_state
from lrunet_jax.steps import data_shardings, make_mesh, make_train_call

CROP = 32  # pixels that a training step sees, of images of 28 too
# A turn's. A device call makes as many steps as one of `train.py`, as on CPU each call
# gets fresh memory; for inference they are many batches, as those of `evaluate`.
TURN_SECONDS = {"step": SECONDS_PER_CALL, "inference": 1.0, "single": 0.25}
MAX_COUNT = 100  # steps in a turn

Timed = Callable[[int], Any]  # does its work so many times, returns when it is done


class Workload(NamedTuple):
    """What is timed.

    Attributes:
      step: training steps, in one device call.
      inference: the logits of batches, in one device call.
      single: the logits of one image, a call each.
    """

    step: Timed
    inference: Timed
    single: Timed


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
    as many.

    Args:
      model: the network.
      image_shape: (H, W, channels).
      batch_size: images a step.
      rounds: how often each is timed, after one time that is not counted.
      dtype: of the computation.
      torch_arguments: of `create_torch_model`; None to leave PyTorch out.

    Returns:
      `step_seconds`, `inference_seconds` of a batch and `single_seconds` of one image
      as medians, each with its quartiles (`step_quartiles`); `compile_seconds` and
      `temp_bytes` of the training step's program. With PyTorch also its medians
      (`torch_step_seconds`), the ratio of the medians, PyTorch's over ours
      (`step_ratio`), and the quartiles of the rounds' ratios (`step_ratio_quartiles`).
    """
    split = _random_split(model, batch_size, image_shape)
    ours, variables, figures = _our_workload(model, split, dtype)
    workloads = [ours]
    if torch_arguments is not None:
        workloads.append(_in_a_process(torch_arguments, variables, split))

    for name in Workload._fields:
        functions = [getattr(workload, name) for workload in workloads]
        mine, *others = _take_turns(functions, rounds, TURN_SECONDS[name])
        figures[f"{name}_seconds"] = statistics.median(mine)
        figures[f"{name}_quartiles"] = _quartiles(mine)
        for theirs in others:
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            seconds = statistics.median(theirs)
            figures[f"torch_{name}_seconds"] = seconds
            figures[f"{name}_ratio"] = seconds / figures[f"{name}_seconds"]
            figures[f"{name}_ratio_quartiles"] = _quartiles(ratios)
    return figures


def _take_turns(
    functions: Sequence[Timed], rounds: int, turn_seconds: float
) -> list[list[float]]:
    """The seconds of each function, for once, in each round."""
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


def _our_workload(model, split, dtype):
    """The workload, the weights it begins with, and the figures of its program."""
    mesh = make_mesh()
    replicated, _ = data_shardings(mesh)
    batch_size, *image_shape = split.images.shape
    config = ml_collections.ConfigDict(
        {"weight_decay": 5e-4, "decay_of": "all", "momentum": 0.9, "nesterov": False}
    )
    tx = create_optimizer(config, lambda step: 0.1)
    state = create_train_state(model, tx, jax.random.key(0), tuple(image_shape))
    state = jax.device_put(state, replicated)
    variables = jax.tree.map(np.asarray, state.learned())
    split = jax.device_put(split, replicated)
    key = jax.device_put(jax.random.key(0), replicated)
    augment = data.make_augment(
        size=CROP, padding=4, rotation=10.0, flip=True, lowering=model.lowering
    )
    batches = jnp.tile(jnp.arange(batch_size, dtype=jnp.int32), (MAX_COUNT, 1))
    batches = jax.device_put(batches, replicated)
    lowered = make_train_call(augment, mesh, dtype).lower(
        state, split, batches, 0, 1, key
    )
    began = time.perf_counter()
    program = lowered.compile()
    figures = {
        "compile_seconds": time.perf_counter() - began,
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
    }

    def step(count):
        nonlocal state
        state = program(state, split, batches, 0, count, key)
        jax.block_until_ready(state.step)

    on_device = jax.device_put(variables, replicated)
    images = (split.images.astype(jnp.float32) / 255).astype(dtype)
    two_batches = jnp.stack([images, images[::-1]])  # no trip repeats the one before
    logits = jnp.zeros((batch_size, model.num_classes), dtype)

    @jax.jit
    def infer_batches(variables, batches, count):
        apply = lambda i, _: model.apply(variables, batches[i % 2])
        return lax.fori_loop(0, count, apply, logits)

    infer = jax.jit(model.apply)
    workload = Workload(
        step,
        lambda count: jax.block_until_ready(
            infer_batches(on_device, two_batches, count)
        ),
        _often(lambda: jax.block_until_ready(infer(on_device, images[:1]))),
    )
    return workload, variables, figures


def _in_a_process(*arguments):
    """PyTorch's workload as its users have it, beside no other threads."""
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    spawning.Process(target=_serve, args=(theirs, *arguments), daemon=True).start()
    theirs.close()  # so that its end is noticed here

    def ask(name):
        def wait(count):
            ours.send((name, count))
            ours.recv()

        return wait

    return Workload(*map(ask, Workload._fields))


def _serve(connection, *arguments):
    workload = _torch_workload(*arguments)
    with contextlib.suppress(EOFError):  # the other side is done
        while True:
            name, count = connection.recv()
            getattr(workload, name)(count)
            connection.send(None)


def _torch_workload(arguments, variables, split):
    import torch

    from lrunet_jax.torch_models import from_variables

    torch.set_num_threads(os.cpu_count() or 1)
    model = from_variables(arguments, split.images.shape[3], variables)
    frozen = from_variables(arguments, split.images.shape[3], variables).eval()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
    )
    images = torch.from_numpy(split.images).movedim(3, 1).float() / 255
    images = images.contiguous(memory_format=torch.channels_last)
    # The augmentation makes 32x32 of 28x28.
    margin = (CROP - images.shape[3]) // 2
    crops = torch.nn.functional.pad(images, [margin] * 4)
    crops = crops.contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(split.labels).long()

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(crops), labels).backward()
        optimizer.step()

    infer = torch.inference_mode()(frozen)
    return Workload(
        _often(step), _often(lambda: infer(images)), _often(lambda: infer(images[:1]))
    )


def _often(function: Callable[[], Any]) -> Timed:
    def times(count):
        for _ in range(count):
            function()

    return times


def _random_split(model, size, image_shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *image_shape), np.uint8)
    return data.Split(images, rng.integers(0, model.num_classes, size, np.int32))


def main() -> None:
    """Reads the arguments and prints the figures."""
    # `compile_seconds` is of a compilation.
    jax.config.update("jax_enable_compilation_cache", False)
    parser = argparse.ArgumentParser(
        prog="python -m lrunet_jax.benchmark", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", default="lrunet", choices=list_models())
    parser.add_argument(
        "--all", action="store_true", help="the published networks, and not --model"
    )
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
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
            if field != "lowering":
                require(value == default, field, value, "left out with --all")
    if args.torch:
        require_torch()
        platform = jax.default_backend()
        require(platform == "cpu", "platform", platform, "cpu, to compare with --torch")
        require(args.dtype == "float32", "dtype", args.dtype, "float32 with --torch")

    device = jax.devices()[0]
    rows: list[dict[str, Any]] = []
    for name, arguments, image_shape in _networks(args):
        if args.all:  # half an hour
            print(f"{len(rows) + 1}/{len(PUBLISHED)} {name}", file=sys.stderr)
        model = create_model(**arguments)
        with jax.default_matmul_precision("highest"):
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
                "lowering": resolve(arguments["lowering"]),
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
    """Name, arguments of `create_model` and image shape of what is to be timed."""
    if not args.all:
        fields = model_fields(args.model)
        arguments = {field: getattr(args, field) for field in fields}
        yield args.model, {"name": args.model, **arguments}, (32, 32, 3)
        return
    for name, entry in PUBLISHED.items():
        arguments = {**entry.model_arguments, "lowering": args.lowering}
        yield name, arguments, data.IMAGE_SHAPES[entry.dataset]


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
