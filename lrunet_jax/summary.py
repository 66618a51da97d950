"""Prints what a model costs: parameters, multiply-accumulates, activations.

    python -m lrunet_jax.summary
    python -m lrunet_jax.summary lrunet --layer_reuse=14 --layers

Without a model it lists the eighteen published ones.
"""

import argparse
import json

from lrunet_jax.cli import (
    ArgumentParser,
    add_model_fields,
    model_from,
    print_table,
    run,
)
from lrunet_jax.errors import require
from lrunet_jax.models import list_layers, list_models, summarise
from lrunet_jax.weights.published import PUBLISHED


def main() -> None:
    """Reads the arguments and prints the costs."""
    parser = ArgumentParser(
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
        rows = [
            {"name": name, "dataset": entry.dataset, **entry.costs()}
            for name, entry in PUBLISHED.items()
        ]
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
