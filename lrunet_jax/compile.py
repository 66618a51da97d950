"""Compiles the training step for devices that need not be here; counts what it does.

    python -m lrunet_jax.compile --topology=v5e:2x4 --config=configs/lrunet.py:cifar10
    python -m lrunet_jax.compile --topology=h100:8 --largest --config.dtype=bfloat16

The step is the one that `train.py` runs on such devices; TPUs beyond 2x4 are of several
machines, and take a process on each. What it takes of memory and what it does is its
compiler's word, by the text of the compiled program; no time is measured. Loops are
counted as often as they run.
"""

import json
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lrunet_jax import data, hlo, ops, topologies
from lrunet_jax.cli import ArgumentParser, parse_flags, run
from lrunet_jax.errors import require
from lrunet_jax.memory import memory_by_kind, memory_taken, size
from lrunet_jax.topologies import Topology
from lrunet_jax.train.devices import abstract, make_mesh
from lrunet_jax.train.setup import for_data, fresh_state, setup
from lrunet_jax.train.step import make_train_call
from lrunet_jax.train.validate import validate, validate_with_data

DEFAULT_CONFIG = "configs/default.py"


def main() -> None:
    """Reads the arguments, compiles, and prints the counts."""
    # A program for a device that is not here can be written to no cache.
    jax.config.update("jax_enable_compilation_cache", False)
    parser = ArgumentParser(
        prog="python -m lrunet_jax.compile",
        description=__doc__.splitlines()[0],
        epilog=f"--config=FILE.py is {DEFAULT_CONFIG} by default, and "
        "--config.FIELD=VALUE overrides a field, as for train.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--topology", required=True, help=topologies.ALLOWED)
    parser.add_argument("--dtype", help="in place of the config's")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--batch_size", type=int, help="in place of the config's")
    sizes.add_argument(
        "--largest", action="store_true", help="the largest batch that fits"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args, others = parser.parse_known_args()
    topology = topologies.get_topology(args.topology)
    config = parse_flags([parser.prog, *others], DEFAULT_CONFIG)
    for field in ("dtype", "batch_size"):
        if (value := getattr(args, field)) is not None:
            config[field] = value

    figures = _largest(config, topology) if args.largest else _step(config, topology)
    figures = {"topology": args.topology, "chip": topology.chip, **figures}
    print(json.dumps(figures)) if args.json else _print(figures, topology)


def _step(config: ConfigDict, topology: Topology) -> dict[str, Any]:
    """The figures of the training step of a config."""
    validate(config, len(topology.devices))
    dataset = data.dataset_info(config.dataset)
    config = for_data(config, dataset)
    shape = (dataset.num_images[0], *dataset.image_shape)
    validate_with_data(config, shape)
    model, _, tx = setup(config, dataset.num_classes)
    channels = np.zeros(shape[3], np.float32)
    stats = {"mean": channels, "std": channels} if config.normalise else {}
    state = jax.eval_shape(lambda: fresh_state(config, model, tx, shape, stats))
    images = np.arange(shape[0], dtype=np.int32)
    full, tail = data.train_batches(images, config.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    mesh = make_mesh(topology.devices)
    train_set, test_set = (_split(n, dataset.image_shape) for n in dataset.num_images)
    automatic = config.lowering == "auto"
    lowering = ops.of_platform(topology.platform) if automatic else config.lowering
    began = time.monotonic()
    precision = jax.default_matmul_precision(config.matmul_precision)
    with ops.lowering(lowering), precision:
        augmentation = data.Augmentation(**config.augment)
        call = make_train_call(augmentation, mesh, config.dtype)
        programs = []
        # A last batch that the devices do not divide is whole on each of them.
        for batches in (full, tail) if tail.size % mesh.size else (full,):
            arguments = (state, train_set, batches, *map(np.int32, (0, 0)), key)
            lowered = call.lower(*abstract(arguments, mesh))
            options = topology.compiler_options
            programs.append(lowered.compile(compiler_options=options))
    program = programs[0]
    memory = memory_by_kind(max(programs, key=memory_taken))
    memory["kept"] = size((state, test_set))  # the state before a call
    counts = hlo.count_step(program.as_text())
    cycles = counts.estimated_cycles
    return {
        "devices": mesh.size,
        "model": dict(config.model),
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "lowering": lowering,
        "compile_seconds": round(time.monotonic() - began, 1),
        "memory": memory | {"total": sum(memory.values())},
        "kernels": counts.kernels,
        "bytes": counts.bytes,
        "flops": counts.flops,
        "collectives": counts.collectives,
        "estimated_cycles": sum(cycles.values()) if cycles else None,
        "cycles_by_module": cycles,
    }


def _split(count, image_shape):
    images: Any = jax.ShapeDtypeStruct((count, *image_shape), "uint8")
    labels: Any = jax.ShapeDtypeStruct((count,), "int32")
    return data.Split(images, labels)


def _largest(config, topology):
    """The figures of the largest batch that fits, to a 64th of it."""
    require(config.batch_size >= 1, "batch_size", config.batch_size, "at least 1")
    each = len(topology.devices)
    most = data.dataset_info(config.dataset).num_images[0] // each * each
    in_shares = lambda images: int(images) // each * each
    batch = max(in_shares(min(config.batch_size, most)), each)
    fitting: list[dict[str, Any]] = []
    too_large = None
    while not fitting or fitting[-1]["batch_size"] < most:
        config.batch_size = batch
        figures = _step_if_it_fits(config, topology)
        print(
            f"batch_size {batch:,} {'fits' if figures else 'does not fit'}",
            file=sys.stderr,
        )
        if figures:
            fitting.append(figures)
        else:
            too_large = batch
        if not fitting:
            allowed = "smaller, which it can't be: it does not fit"
            require(batch > each, "batch_size", batch, allowed)
            batch = max(in_shares(batch / 2), each)
            continue
        largest = fitting[-1]["batch_size"]
        gap = max(in_shares(largest / 64), each)
        if too_large and too_large - largest <= gap:
            break
        # Memory is a straight line, or nearly.
        batch = in_shares(_where_memory_ends(fitting[-2:], topology.memory_bytes))
        batch = min(max(batch, largest + gap), most)
        if too_large and batch >= too_large:
            batch = in_shares((largest + too_large) / 2)
    return fitting[-1] | {"too_large": too_large}


def _step_if_it_fits(config, topology):
    try:
        figures = _step(config, topology)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return None
    return figures if figures["memory"]["total"] <= topology.memory_bytes else None


def _where_memory_ends(steps, limit):
    """The batch size at which the line through one or two steps meets the limit."""
    batches = [0, *(step["batch_size"] for step in steps)][-2:]
    bytes_of = [0, *(step["memory"]["total"] for step in steps)][-2:]
    per_image = (bytes_of[1] - bytes_of[0]) / (batches[1] - batches[0])
    return batches[1] + (limit - bytes_of[1]) / max(per_image, 1)


def _print(figures, topology):
    devices, batch = figures["devices"], figures["batch_size"]
    rows = {
        "devices": f"{devices} x {figures['chip']}",
        "batch": f"{batch:,}, {batch // devices:,} on each device",
        "lowering": f"{figures['lowering']}, {figures['dtype']}",
    }
    if "too_large" in figures:
        larger = figures["too_large"]
        rows["largest"] = (
            f"{larger:,} does not fit" if larger else "as large as the set"
        )
    rows |= {
        f"memory, {kind}": _bytes(count) for kind, count in figures["memory"].items()
    }
    if topology.memory_bytes:
        share = figures["memory"]["total"] / topology.memory_bytes
        rows["memory, total"] += f", {share:.1%} of {_bytes(topology.memory_bytes)}"
    rows |= {
        "kernels": f"{figures['kernels']:,}",
        "bytes": _bytes(figures["bytes"]),
        "flops": f"{figures['flops'] / 1e9:,.1f} G",
    }
    for kind, of_kind in figures["collectives"].items():
        rows[kind] = f"{of_kind['count']:,} times, {_bytes(of_kind['bytes'])}"
    if cycles := figures["cycles_by_module"]:
        rows["estimated cycles"] = f"{figures['estimated_cycles']:,}"
        ordered = sorted(cycles.items(), key=lambda item: -item[1])
        rows |= {f"  {module}": f"{count:,}" for module, count in ordered}
    print("one training step, on each device")
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value}")


def _bytes(count):
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


if __name__ == "__main__":
    run(main)
