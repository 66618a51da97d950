"""Prints the results of runs, those that differ in nothing but the seed averaged.

python -m lrunet_jax.results RUNS...
"""

import json

from lrunet_jax.cli import ArgumentParser, print_table, run
from lrunet_jax.runs.groups import read_groups
from lrunet_jax.weights.published import published_accuracy


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = ArgumentParser(
        prog="python -m lrunet_jax.results", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", help="workdirs of train.py")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    rows = [_row(group) for group in read_groups(args.runs)]
    print(json.dumps(rows)) if args.json else print_table(list(map(_printed, rows)))


def _row(group):
    last, best = group.last(), group.best()
    return {
        "runs": group.label,
        "model": group.config["model.name"],
        "dataset": group.config["dataset"],
        "params": group.costs()["params"],
        "macs": group.costs()["macs"],
        "epoch": group.epochs()[-1],
        "epochs": group.config["epochs"],
        "seeds": len(group.runs),
        "last": last.mean,
        "last_deviation": last.deviation,
        "best": best.mean,
        "best_deviation": best.deviation,
        "best_chosen_on": "validation" if group.config["validation"] else "test",
        "published": published_accuracy(group.config),
    }


def _printed(row):
    """A row for a person to read: accuracies in percent."""

    def percent(name):
        deviation = f" ± {100 * row[f'{name}_deviation']:.2f}" * (row["seeds"] > 1)
        return f"{row[name]:.2%}{deviation}"

    published = row["published"]
    return {
        "runs": row["runs"],
        "model": row["model"],
        "data": row["dataset"],
        "parameters": row["params"],
        "MACs": row["macs"],
        "epochs": f"{row['epoch']} of {row['epochs']}",
        "seeds": row["seeds"],
        "last": percent("last"),
        "best": percent("best"),
        "chosen on": f"{row['best_chosen_on']} set",
        "published": "" if published is None else f"{published:.2%}",
    }


if __name__ == "__main__":
    run(main)
