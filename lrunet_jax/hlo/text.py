"""The text of a compiled program (optimised HLO), read into instructions."""

import dataclasses
import itertools
import math
import re

_SHAPE = re.compile(r"\b(pred|(?:bf|[cfsu])(\d+)\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?(\S+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?(\S+) = (.*?) ([\w-]+)\((.*)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line: `name = shape opcode(arguments), attributes`.

    Attributes:
      operands: the names among the arguments.
    """

    name: str
    shape: str
    opcode: str
    arguments: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def size(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(
            math.ceil(int(bits or 8) * math.prod(numbers(dims)) / 8)
            for _, bits, dims in _SHAPE.findall(self.shape)
        )

    @property
    def dims(self) -> list[int]:
        """The dimensions of the first array of the result."""
        return numbers(_SHAPE.findall(self.shape)[0][2])

    @property
    def is_float(self) -> bool:
        """Tells whether the first array of the result has floating-point numbers."""
        return self.shape.lstrip("(").startswith(("f", "bf", "c"))

    @property
    def target(self) -> str:
        """The name of what a custom call calls."""
        return self.find(r'custom_call_target="([^"]*)"') or ""

    @property
    def index(self) -> int:
        """The place of the element that a get-tuple-element gets."""
        return int(self.find(r"\bindex=(\d+)") or 0)

    def find(self, pattern: str) -> str | None:
        """The group of a pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    def called(self, attribute: str) -> str:
        """The computation that an attribute names."""
        name = self.find(rf"\b{attribute}=%?([^\s,}}]+)")
        if name is None:
            raise ValueError(f"{self.opcode} {self.name} has no {attribute}")
        return name

    @property
    def run(self) -> list[str]:
        """The computations that run where a call stands; of a conditional, one does."""
        if self.opcode == "call":
            return [self.called("to_apply")]
        if self.opcode == "async-start":
            return [self.called("calls")]
        if self.opcode != "conditional":
            return []
        if listed := self.find(r"branch_computations=\{([^}]*)\}"):
            return re.findall(r"%?([^\s,%]+)", listed)
        return [self.called(f"{name}_computation") for name in ("true", "false")]


Computation = dict[str, Instruction]  # by their names, the root last


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a text, by their names.

    Attributes:
      entry: the one that a call of the program runs.
      loops: for each body and each condition of a loop, the computation that the loop
        stands in, and the loop.
    """

    computations: dict[str, Computation]
    entry: str
    loops: dict[str, tuple[str, Instruction]]

    def root(self, name: str) -> Instruction:
        """The instruction whose value a computation returns."""
        computation = self.computations[name]
        return computation[next(reversed(computation))]


def parse(text: str) -> Program:
    """Reads a program's text.

    Of an asynchronous pair, `x-start` and `x-done`, the first becomes an `x` with the
    result of the second. What runs in a computation of its own stays `async-start`.
    """
    computations: dict[str, Computation] = {}
    name, entry, root = "", "", None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name, root = start[2], None
            entry = name if start[1] else entry
            computations[name] = {}
        elif line.startswith("}"):
            if name and root:  # it may stand anywhere
                computations[name][root.name] = computations[name].pop(root.name)
            name = ""
        elif name and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(*found.groups()[1:])
            computations[name][instruction.name] = instruction
            root = instruction if found[1] else root
    if not entry:
        raise ValueError("a program's text has a computation ENTRY; this one has not")
    for computation in computations.values():
        _join_pairs(computation)
    loops = {
        instruction.called(attribute): (name, instruction)
        for name, computation in computations.items()
        for instruction in computation.values()
        if instruction.opcode == "while"
        for attribute in ("body", "condition")
    }
    return Program(computations, entry, loops)


def numbers(text: str, separator: str = ",") -> list[int]:
    """The numbers of a list."""
    return [int(number) for number in text.split(separator) if number]


def _instruction(name, shape, opcode, rest):
    """Makes an instruction; `rest` is what follows the bracket before its arguments."""
    depths = itertools.accumulate(
        ((character == "(") - (character == ")") for character in rest), initial=1
    )
    end = next((place for place, depth in enumerate(depths) if not depth), len(rest))
    arguments, attributes = rest[: end - 1], rest[end:]
    operands = tuple(re.findall(r"%([^\s,)]+)", arguments))
    return Instruction(name, shape, opcode, arguments, operands, attributes)


def _join_pairs(computation):
    for done in [i for i in computation.values() if i.opcode.endswith("-done")]:
        start = computation[done.operands[0]]
        while start.opcode.endswith("-update"):
            start = computation[start.operands[0]]
        if start.opcode.endswith("-start"):
            computation[start.name] = dataclasses.replace(start, shape=done.shape)
    for name, start in computation.items():
        if start.opcode.endswith("-start") and start.opcode != "async-start":
            opcode = start.opcode.removesuffix("-start")
            computation[name] = dataclasses.replace(start, opcode=opcode)
