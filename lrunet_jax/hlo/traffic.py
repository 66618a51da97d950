"""The bytes that an operation of a program reads and writes."""

from lrunet_jax.hlo.text import Instruction, Program

_SLICES = {"dynamic-slice", "gather", "slice"}


def traffic(program: Program, name: str, operation: Instruction) -> int:
    """The bytes that an operation reads and writes, in whatever memory.

    Of what is only sliced it reads the slices, and of an update in place it writes the
    update. What a fusion makes and uses itself is neither read nor written.

    Args:
      program: the whole.
      name: the computation that the operation stands in.
      operation: the instruction.
    """
    read = (_read_by(program, name, operation, o) for o in {*operation.operands})
    return sum(read) + _written(program, name, operation)


def _written(program, name, operation):
    computation = program.computations[name]
    operands = [computation[operand] for operand in operation.operands]
    match operation.opcode:
        case "tuple":
            return sum(_written(program, name, operand) for operand in operands)
        case "bitcast":
            return min(operation.size, _written(program, name, operands[0]))
        case "dynamic-update-slice":
            return operands[1].size
        case "fusion":
            inner = operation.called("calls")
            return _written(program, inner, program.root(inner))
    return operation.size


def _read(program, name, value):
    """The bytes that all readers of a value read of it, at most the whole."""
    readers = [i for i in program.computations[name].values() if value in i.operands]
    read = sum(_read_by(program, name, reader, value) for reader in readers)
    return min(program.computations[name][value].size, read)


def _read_by(program, name, reader, value):
    whole = program.computations[name][value].size
    if reader.opcode == "fusion":
        inner = reader.called("calls")
        parameters = _parameters(program, inner)
        places = [i for i, operand in enumerate(reader.operands) if operand == value]
        return min(whole, sum(_read(program, inner, parameters[i]) for i in places))
    first, *others = reader.operands
    if value == first and value not in others:
        if reader.opcode in _SLICES:
            return min(whole, reader.size)
        if reader.opcode == "dynamic-update-slice":
            return 0
        if reader.opcode == "bitcast":
            return _read(program, name, reader.name)
    return whole


def _parameters(program, name):
    return {
        int(instruction.arguments): instruction.name
        for instruction in program.computations[name].values()
        if instruction.opcode == "parameter"
    }
