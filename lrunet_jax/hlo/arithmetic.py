"""The floating-point operations of an instruction of a program."""

import functools
import math
import re

from lrunet_jax.hlo.text import Computation, Instruction, numbers

_ELEMENTWISE = {
    "abs",
    "add",
    "atan2",
    "cbrt",
    "ceil",
    "cosine",
    "divide",
    "erf",
    "exponential",
    "exponential-minus-one",
    "floor",
    "log",
    "log-plus-one",
    "logistic",
    "maximum",
    "minimum",
    "multiply",
    "negate",
    "power",
    "remainder",
    "round-nearest-afz",
    "round-nearest-even",
    "rsqrt",
    "sign",
    "sine",
    "sqrt",
    "subtract",
    "tan",
    "tanh",
}


def flops(computation: Computation, instruction: Instruction) -> int:
    """Floating-point operations; see `Counts.flops`.

    Args:
      computation: that the instruction stands in.
      instruction: no fusion, call or loop.
    """
    operands = [computation[operand] for operand in instruction.operands]
    opcode = instruction.opcode
    if opcode == "dot":
        return _product(instruction, operands, r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.target.startswith("__cublas$"):
        pattern = r'"lhs_contracting_dimensions":\[([^\]]*)\]'
        return _product(instruction, operands, pattern)
    if opcode == "convolution" or instruction.target.startswith("__cudnn$conv"):
        return _convolution(instruction, operands)
    if not instruction.is_float:
        return 0
    if opcode in _ELEMENTWISE:
        return math.prod(instruction.dims)
    if opcode == "reduce":  # the second half are the initial values
        arrays = operands[: len(operands) // 2]
        return sum(math.prod(array.dims) for array in arrays)
    if opcode in ("reduce-window", "select-and-scatter"):
        places = instruction if opcode == "reduce-window" else operands[1]
        return math.prod(places.dims) * math.prod(_window(instruction, "size"))
    return 0


def _product(instruction, operands, contracting):
    found = (instruction.find(contracting) or "").replace('"', "")
    depth = math.prod(operands[0].dims[place] for place in numbers(found))
    return 2 * math.prod(instruction.dims) * depth


def _convolution(instruction, operands):
    image, kernel, result = operands[0], operands[1], instruction
    # cuDNN's gradients are described as the convolution that they are gradients of.
    if "BackwardInput" in instruction.target:
        image, result = result, image
    elif "BackwardFilter" in instruction.target:
        kernel, result = result, kernel
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name} has no dim_labels")
    of_image, of_kernel, of_result = labels.groups()
    sizes = dict(zip(of_result, result.dims, strict=True))
    total = sizes["b"] * sizes["f"] * kernel.dims[of_kernel.index("i")]
    defaults = {"stride": 1, "pad": (0, 0), "lhs_dilate": 1, "rhs_dilate": 1}
    for place, size in enumerate(_window(instruction, "size")):
        stride, (pad, _), image_step, kernel_step = (
            (_window(instruction, field) or {place: default})[place]
            for field, default in defaults.items()
        )
        length = image.dims[of_image.index(str(place))]
        total *= _meetings(
            length, size, sizes[str(place)], stride, pad, image_step, kernel_step
        )
    return 2 * total


@functools.cache
def _meetings(length, size, results, stride, pad, image_step, kernel_step):
    """Counts how often an element of a kernel meets one of the image, along an axis."""
    return sum(
        place % image_step == 0 and 0 <= place < length * image_step
        for result in range(results)
        for place in (
            result * stride + element * kernel_step - pad for element in range(size)
        )
    )


def _window(instruction, field):
    """A field of a window, for each of its axes; an empty list if it is not there."""
    window = instruction.find(r"window=\{([^}]*)\}") or ""
    found = re.search(rf"\b{field}=(\S+)", window)
    if found is None:
        return []
    if field == "pad":
        return [numbers(axis, "_") for axis in found[1].split("x")]
    return numbers(found[1], "x")
