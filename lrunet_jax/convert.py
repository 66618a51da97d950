"""Converts trained networks between PyTorch's files and Orbax directories.

    python -m lrunet_jax.convert cifar10-lru14-ckpt-08934.t7 DIRECTORY
    python -m lrunet_jax.convert WORKDIR weights.pt

SOURCE is whatever `lrunet_jax.evaluate` takes. TARGET is a PyTorch file if it ends in
.pt, .pth or .t7, else a directory.
"""

from lrunet_jax.cli import ArgumentParser, run
from lrunet_jax.weights.loading import open_model, save_model


def main() -> None:
    """Reads the arguments and converts."""
    parser = ArgumentParser(
        prog="python -m lrunet_jax.convert", description=__doc__.splitlines()[0]
    )
    parser.add_argument("source", help="or the name of a published checkpoint")
    parser.add_argument("target", help="a path that does not exist yet")
    parser.add_argument("--step", type=int, help="of a run; by default the best")
    parser.add_argument(
        "--module_prefix",
        action="store_true",
        help="put 'module.' before each name, as PyTorch's DataParallel does",
    )
    args = parser.parse_args()
    stored = open_model(args.source, args.step)
    save_model(stored, args.target, module_prefix=args.module_prefix)
    print(f"{stored.name}: {stored.describe()} -> {args.target}")


if __name__ == "__main__":
    run(main)
