"""Draws the curves of runs, and their accuracy against parameters and iterations.

    python -m lrunet_jax.plot RUNS... --out=runs.png

Runs that differ in nothing but the seed are averaged. Published accuracies are hollow
grey markers.
"""

from lrunet_jax.cli import ArgumentParser, run
from lrunet_jax.figures.files import FORMATS, figure_path, written_to
from lrunet_jax.runs.curves import Reference, plot_groups
from lrunet_jax.runs.groups import read_groups
from lrunet_jax.weights.published import PUBLISHED


def main() -> None:
    """Reads the arguments and draws."""
    parser = ArgumentParser(
        prog="python -m lrunet_jax.plot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", help="workdirs of train.py")
    parser.add_argument(
        "--out", required=True, help=f"the picture, with {' or '.join(FORMATS)}"
    )
    args = parser.parse_args()
    path = figure_path("out", args.out)
    groups = read_groups(args.runs)
    drawn = {group.config["dataset"] for group in groups}
    published = [
        Reference(
            model=entry.model,
            dataset=entry.dataset,
            params=entry.costs()["params"],
            layer_reuse=entry.arguments.get("layer_reuse", 0),
            accuracy=entry.accuracy,
        )
        for entry in PUBLISHED.values()
        if entry.dataset in drawn
    ]
    with written_to("out", args.out):
        plot_groups(groups, path, published)


if __name__ == "__main__":
    run(main)
