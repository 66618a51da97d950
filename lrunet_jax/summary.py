"""What a model costs: parameters, multiply-accumulates, activations.

    python -m lrunet_jax.summary
    python -m lrunet_jax.summary lrunet --layer_reuse=14 --layers

Without a model it lists the eighteen published ones.
"""

import argparse
import functools
import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import jaxprs_in_params

from lrunet_jax.command import add_model_fields, model_from, print_table, run
from lrunet_jax.data import IMAGE_SHAPES
from lrunet_jax.errors import require
from lrunet_jax.models import abstract_variables, create_model, list_models
from lrunet_jax.published import PUBLISHED

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """A convolution or linear layer, for one image.

    Attributes:
      name: of its module.
      kernel: shape of its kernel, as Flax has it.
      output: (H, W, channels), or (features,).
      times: that it is applied.
      params: kernel and bias.
      macs: multiply-accumulates, of all times together.
      activation_bytes: of all its outputs, in float32.
    """

    name: str
    kernel: Shape
    output: Shape
    times: int
    params: int
    macs: int
    activation_bytes: int


def summarise(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """The costs of `model` for one image (H, W, channels).

    Returns:
      `params`, the trainable parameters; `conv_params`, those of convolutions and
      linear layers with their biases; `macs`, the multiply-accumulates of these; and
      `activation_bytes`, of what they put out, in float32.
    """
    params, layers = _read_off(model, image_shape)
    return {
        "params": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "conv_params": sum(layer.params for layer in layers),
        "macs": sum(layer.macs for layer in layers),
        "activation_bytes": sum(layer.activation_bytes for layer in layers),
    }


def list_layers(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Layer]:
    """The convolutions and linear layers, in the order in which they are applied.

    Read off the program itself: the forward pass in training, where no norm is folded
    into a kernel, in the lowering that calls each convolution by its name.
    """
    return _read_off(model, image_shape)[1]


def _read_off(model, image_shape):
    """The abstract parameters of a model, and its layers."""
    model = model.clone(lowering="xla")
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = abstract_variables(model, image_shape[2])

    def forward(variables, image):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return apply(variables, image, rngs={"dropout": jax.random.key(0)})

    jaxpr = jax.make_jaxpr(forward)(variables, image).jaxpr
    return variables["params"], list(_layers(jaxpr, variables["params"], "", 1))


def _layers(jaxpr, params, outer: str, times: int) -> Iterator[Layer]:
    for equation in jaxpr.eqns:
        scope = f"{outer}/{equation.source_info.name_stack}"
        if equation.primitive.name == "conv_general_dilated":
            channels, height, width, _ = equation.outvars[0].aval.shape
            output: Shape = (height, width, channels)
        elif equation.primitive.name == "dot_general":
            _, *output = equation.outvars[0].aval.shape
        else:
            inner_times = times * equation.params.get("length", 1)  # of a scan
            for inner in jaxprs_in_params(equation.params):
                yield from _layers(inner, params, scope, inner_times)
            continue
        kernel = equation.invars[1].aval.shape
        # Modules only: the first is the network, and a method's name has a dot.
        modules = [part for part in scope.split("/")[2:] if part and "." not in part]
        yield Layer(
            name="/".join(modules),
            kernel=kernel,
            output=tuple(output),
            times=times,
            params=math.prod(kernel) + _bias_size(params, modules),
            # Each output value meets all of the kernel that makes its channel.
            macs=times * math.prod(output) * math.prod(kernel[:-1]),
            activation_bytes=times * math.prod(output) * 4,
        )


def _bias_size(params, modules):
    for module in modules:
        params = params[module]
    return math.prod(params["bias"].shape) if "bias" in params else 0


def _published_rows() -> list[dict[str, Any]]:
    rows = []
    for name, entry in PUBLISHED.items():
        model = create_model(**entry.model_arguments)
        costs = summarise(model, IMAGE_SHAPES[entry.dataset])
        rows.append({"name": name, "dataset": entry.dataset, **costs})
    return rows


def main() -> None:
    """Reads the arguments and prints the costs."""
    parser = argparse.ArgumentParser(
        prog="python -m lrunet_jax.summary", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    models = parser.add_subparsers(dest="model", metavar="MODEL", help="with --help")
    for name in list_models():
        of_model = models.add_parser(name, help=f"{name} --help lists its arguments")
        of_model.add_argument("--image_size", type=int, default=32, help="in pixels")
        of_model.add_argument("--image_channels", type=int, default=3)
        of_model.add_argument("--layers", action="store_true", help="list all layers")
        # Without a default, or it would undo a --json before the model's name.
        of_model.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )
        add_model_fields(of_model, name)
    args = parser.parse_args()
    if args.model is None:
        rows = _published_rows()
        print(json.dumps(rows)) if args.json else print_table(rows)
        return
    for name in ("image_size", "image_channels"):
        size = getattr(args, name)
        require(1 <= size <= 10_000, name, size, "from 1 to 10000")
    model = model_from(args)
    shape = (args.image_size, args.image_size, args.image_channels)
    costs = {"model": args.model, **summarise(model, shape)}
    layers = list_layers(model, shape) if args.layers else []
    if args.json:
        listed = {"layers": [layer._asdict() for layer in layers]} if layers else {}
        print(json.dumps(costs | listed))
        return
    if layers:
        print_table([_layer_row(layer) for layer in layers])
        print()
    print_table([costs])


def _layer_row(layer):
    by = lambda sizes: "x".join(map(str, sizes))
    return layer._asdict() | {"kernel": by(layer.kernel), "output": by(layer.output)}


if __name__ == "__main__":
    run(main)
