"""Counts of what a program does, loops counted as often as they run."""

import collections
import dataclasses
import re
from collections.abc import Iterator

from lrunet_jax.hlo.arithmetic import flops
from lrunet_jax.hlo.text import Instruction, Program, parse
from lrunet_jax.hlo.traffic import traffic
from lrunet_jax.hlo.trips import trips

_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "tuple",
}
_FREE_TARGETS = {  # on TPU
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "ConcatBitcast",
}
_COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
}
# What an op_name holds beside the names of modules and scopes.
_STRUCTURE = {
    "body",
    "branch",
    "checkpoint",
    "closed_call",
    "cond",
    "rematted_computation",
    "shard_map",
    "while",
}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Amounts of what a program does on one device.

    Attributes:
      kernels: operations that are launched. A fusion is one; loops, conditionals and
        calls are none, but what they run. Of a conditional that is the branch that
        moves most bytes.
      bytes: that these operations read and write, in whatever memory; see `traffic`.
      flops: floating-point operations: two for each product of a matrix product or a
        convolution, but for those with padding and with the zeros of a dilation; one
        for each element of arithmetic, each input of a reduction and each place of a
        window that reduces. Comparisons, selections, conversions and integers are none.
      collectives: by kind ("all-reduce"), how many (`count`), and the bytes (`bytes`)
        that each device puts into them; of all-gathers those that it gets.
      estimated_cycles: what the TPU's compiler estimates, by module of the network or
        named scope; "step" is the rest. None where the text has no estimates.
    """

    kernels: int
    bytes: int
    flops: int
    collectives: dict[str, dict[str, int]]
    estimated_cycles: dict[str, int] | None


def count(text: str) -> Counts:
    """Counts what one run of a program does.

    Args:
      text: `as_text()` of what `compile` of a lowered function returned.

    Raises:
      ValueError: if it is not known how often a loop runs.
    """
    program = parse(text)
    return _counts(program, program.entry)


def count_step(text: str) -> Counts:
    """Counts what one trip of the loop over the steps does.

    That is the only loop that stands in no other and whose number of trips is not
    known. What stands before it is done once a call, and not counted.

    Args:
      text: as `count` takes it.

    Raises:
      ValueError: if there is no such loop or more than one, or if it is not known how
        often a loop within it runs.
    """
    program = parse(text)
    outer = list(_outer_loops(program, program.entry))
    steps = [loop for name, loop in outer if trips(program, name, loop) is None]
    if len(steps) != 1:
        raise ValueError(
            f"{len(steps)} of {len(outer)} outer loops run an unknown number of times; "
            "it must be 1, the loop over the steps"
        )
    return _counts(program, steps[0].called("body"))


def _counts(program, name):
    kernels = moved = arithmetic = 0
    collectives: dict[str, dict[str, int]] = {}
    cycles: collections.Counter[str] = collections.Counter()
    channels = set()
    for times, at, operation in _executed(program, name):
        if estimate := operation.find(r'"estimated_cycles":"(\d+)"'):
            cycles[_module(operation)] += times * int(estimate)
        if _is_free(program, operation):
            continue
        kernels += times
        moved += times * traffic(program, at, operation)
        for inner, part in _parts(program, at, operation):
            arithmetic += times * flops(program.computations[inner], part)
            if part.opcode in _COLLECTIVES:
                # On TPU the fusions that start it, go on with it and end it hold it.
                channel = part.find(r"channel_id=(\d+)")
                if channel and part is not operation and channel in channels:
                    continue
                channels.add(channel)
                kind = collectives.setdefault(part.opcode, {"count": 0, "bytes": 0})
                kind["count"] += times
                kind["bytes"] += times * _contributed(program.computations[inner], part)
    return Counts(kernels, moved, arithmetic, collectives, dict(cycles) or None)


def _executed(
    program: Program, name: str, times: int = 1
) -> Iterator[tuple[int, str, Instruction]]:
    """Yields how often each instruction runs, the computation it is in, and itself."""
    for instruction in program.computations[name].values():
        if instruction.opcode == "while":
            n = trips(program, name, instruction)
            if n is None:
                raise ValueError(f"how often loop {instruction.name} runs is not known")
            yield from _executed(program, instruction.called("body"), times * n)
        elif called := instruction.run:
            branches = [list(_executed(program, other, times)) for other in called]
            yield from max(branches, key=lambda branch: _all_traffic(program, branch))
        else:
            yield times, name, instruction


def _all_traffic(program, executed):
    return sum(
        times * traffic(program, name, operation)
        for times, name, operation in executed
        if not _is_free(program, operation)
    )


def _outer_loops(program, name):
    for instruction in program.computations[name].values():
        if instruction.opcode == "while":
            yield name, instruction
        for called in instruction.run:
            yield from _outer_loops(program, called)


def _parts(program, name, operation):
    """Yields what an operation is made of, a fusion of all that is in it."""
    if operation.opcode != "fusion":
        yield name, operation
        return
    inner = operation.called("calls")
    for part in program.computations[inner].values():
        yield from _parts(program, inner, part)


def _is_free(program, instruction):
    """Tells whether nothing is launched; of an asynchronous pair its start is."""
    root = instruction
    if instruction.opcode == "fusion":
        root = program.root(instruction.called("calls"))
    return (
        instruction.opcode in _FREE
        or instruction.opcode.endswith(("-done", "-update"))
        or root.target in _FREE_TARGETS
    )


def _contributed(computation, collective):
    if collective.opcode == "all-gather":
        return collective.size
    return sum(computation[operand].size for operand in collective.operands)


def _module(operation):
    """The network's module at its top that an operation is part of, or a scope."""
    *path, _ = (operation.find(r'op_name="([^"]*)"') or "").split("/")
    rest = "step"
    for place, part in enumerate(path):
        if network := re.fullmatch(r"(?:transpose\()?jvp\((\w+)\)+", part):
            path, rest = path[place + 1 :], network[1]
            break
    scopes = (part for part in path if re.fullmatch(r"\w+", part))
    return next((scope for scope in scopes if scope not in _STRUCTURE), rest)
