"""Trips of the loops of a program: how often each runs."""

import itertools

from lrunet_jax.hlo.text import Instruction, Program

_COPIES = {"bitcast", "copy", "copy-done", "opt-barrier"}


def trips(program: Program, name: str, loop: Instruction) -> int | None:
    """The number of times that a loop's body runs; None if that is not known.

    XLA notes it for CPU and GPU. For TPU it is found: where a number that starts at a
    constant, and to which each trip adds a constant, is compared with a constant.

    Args:
      program: the whole.
      name: the computation that the loop stands in.
      loop: the instruction.
    """
    if known := loop.find(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = loop.called("condition")
    test = program.root(condition)
    if test.opcode != "compare":
        return None
    counter = _origin(program, condition, test.operands[0])
    if counter.opcode != "get-tuple-element":
        return None
    start = _element(program, name, loop.operands[0], counter.index)
    stop = _constant(program, condition, test.operands[1])
    step = _step(program, loop.called("body"), counter.index)
    if start is None or stop is None or not step:
        return None
    direction = test.find(r"direction=(\w+)")
    beyond = stop + {"LE": 1, "GE": -1}.get(direction or "", 0)
    up = direction in ("LT", "LE")
    if (up and step > 0) or (direction in ("GT", "GE") and step < 0):
        return len(range(start, beyond, step))
    return None


def _step(program, body, index):
    """The number that each trip adds to an element of what the loop carries."""
    carried = _carried(program, body, index)
    if carried is None or carried.opcode != "add":
        return None
    for value, step in itertools.permutations(carried.operands):
        if _is_element(_origin(program, body, value), index):
            return _constant(program, body, step)
    return None


def _constant(program, name, value):
    """A value's number if it is always the same, in the loops around it too."""
    source = _origin(program, name, value)
    if source.opcode == "constant" and source.arguments.lstrip("-").isdigit():
        return int(source.arguments)
    if source.opcode != "get-tuple-element":
        return None
    holder = _origin(program, name, source.operands[0])
    if holder.opcode == "while":
        loop = holder
    elif holder.opcode == "parameter" and name in program.loops:
        name, loop = program.loops[name]
    else:
        return None
    if _is_element(_carried(program, loop.called("body"), source.index), source.index):
        return _element(program, name, loop.operands[0], source.index)
    return None


def _element(program, name, value, index):
    """The constant that an element of a tuple is."""
    holder = _origin(program, name, value)
    if holder.opcode == "tuple":
        return _constant(program, name, holder.operands[index])
    return None


def _carried(program, body, index):
    """The instruction that makes an element of what a loop carries to its next trip."""
    root = program.root(body)
    if root.opcode == "tuple":
        return _origin(program, body, root.operands[index])
    return None


def _is_element(source, index):
    """Tells whether this is an element of what a body got, the only tuple there is."""
    return (
        source is not None
        and source.opcode == "get-tuple-element"
        and source.index == index
    )


def _origin(program, name, value):
    """The instruction of the same computation that a value is a copy of."""
    source = program.computations[name][value]
    if source.opcode in _COPIES:
        return _origin(program, name, source.operands[0])
    if source.opcode == "get-tuple-element":
        holder = _origin(program, name, source.operands[0])
        if holder.opcode == "tuple":
            return _origin(program, name, holder.operands[source.index])
    return source
