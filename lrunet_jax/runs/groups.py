"""Groups of runs that differ in nothing but the seed."""

import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lrunet_jax.errors import InputError, in_one_line
from lrunet_jax.files import find_path, is_remote
from lrunet_jax.models import create_model, summarise
from lrunet_jax.runs.config import flatten, read_config
from lrunet_jax.runs.facts import info_of, read_facts
from lrunet_jax.runs.record import Line, read_lines, value_on


class Estimate(NamedTuple):
    """The mean of a value over seeds, and its sample deviation, 0 for one seed."""

    mean: float
    deviation: float


class Run(NamedTuple):
    """A run of train.py.

    Attributes:
      path: its workdir, absolute.
      config: its fields by their dotted names; `dataset` is `arrays` for a run on
        some, and the digest of the data is among them.
      lines: of its record.
      accuracies: on the test set, by epoch; with held-out images those at the end.
      best: that of the best epoch on held out images, by the epoch that it was known
        at; empty without such images.
      costs: of its model, see `summarise`.
    """

    path: str
    config: dict[str, Any]
    lines: list[Line]
    accuracies: dict[int, float]
    best: dict[int, float]
    costs: dict[str, int]


class Group(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
      label: what the names of their directories have in common.
      runs: one per seed.
    """

    label: str
    runs: list[Run]

    @property
    def config(self) -> dict[str, Any]:
        """The config that the runs share; its seed is that of the first."""
        return self.runs[0].config

    def last(self) -> Estimate:
        """The accuracy after the last epoch that all runs have been evaluated at."""
        return estimate([run.accuracies[self.epochs()[-1]] for run in self.runs])

    def best(self) -> Estimate:
        """The accuracy of each run's best epoch, on held out images if there are any.

        Without them it is the best on the test set, at any of these epochs.
        """
        *_, last = epochs = self.epochs()
        best = lambda run: max(run.accuracies[epoch] for epoch in epochs)
        chosen = [run.best[last] if run.best else best(run) for run in self.runs]
        return estimate(chosen)

    def epochs(self) -> list[int]:
        """The epochs that all runs have been evaluated at."""
        return sorted(set.intersection(*(set(run.accuracies) for run in self.runs)))

    def costs(self) -> dict[str, int]:
        """The costs of the model, see `summarise`."""
        return self.runs[0].costs

    def records(self) -> list[list[Line]]:
        """The lines of each run."""
        return [run.lines for run in self.runs]


def read_groups(paths: Sequence[str]) -> list[Group]:
    """The runs in some workdirs, grouped, in the order of their first paths.

    Raises:
      InputError: if one can't be read, or two are of the same config and seed.
    """
    given = [_read_run(path) for path in dict.fromkeys(map(_resolve, paths))]
    runs = [run for run in given if run.accuracies]
    for run in given:
        if not run.accuracies:
            end = " (which is at the end)" if run.config["validation"] else ""
            print(f"{run.path} is left out: not tested yet{end}", file=sys.stderr)
    if not runs:
        raise InputError(f"runs are {given[0].path!r}, ...; one must have been tested")
    by_config: dict[str, dict[int, Run]] = {}
    for found in runs:
        others = {
            field: found.config[field] for field in found.config.keys() - {"seed"}
        }
        seeds = by_config.setdefault(json.dumps(others, sort_keys=True), {})
        same = seeds.setdefault(found.config["seed"], found)
        if same is not found:
            raise InputError(
                f"runs are {same.path!r} and {found.path!r}, of the same config and "
                "seed; each must differ from the others"
            )
    runs_of = [list(seeds.values()) for seeds in by_config.values()]
    groups = list(map(Group, _labels(runs_of), runs_of))
    for group in groups:
        if not group.epochs():
            raise InputError(
                f"runs are {group.label!r}, which were never evaluated at the same "
                "epoch; they must be, to be averaged"
            )
    return groups


def mean_curve(
    records: Sequence[Sequence[Line]], value: Callable[[Line], float | None]
) -> dict[int, Estimate]:
    """The estimate of `value(line)` over runs, by epoch, where all runs have it."""
    by_run = [{line["epoch"]: value(line) for line in lines} for lines in records]
    by_epoch = {epoch: [values.get(epoch) for values in by_run] for epoch in by_run[0]}
    return {
        epoch: estimate([value for value in values if value is not None])
        for epoch, values in by_epoch.items()
        if None not in values
    }


def estimate(values: Sequence[float]) -> Estimate:
    """Estimates a value by its numbers from several seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Estimate(statistics.fmean(values), deviation)


def _resolve(path):
    found = find_path("run", path)
    return str(found if is_remote(found) else os.path.realpath(found))


def _read_run(path):
    workdir = find_path("run", path)
    try:
        config, lines = read_config(workdir), read_lines(workdir)
        for line in lines:
            _require_numbers(line, "epoch", "train_loss", "train_accuracy")
        tested = [line for line in lines if "test_accuracy" in line]
        for line in tested:
            _require_numbers(line, *(name for name in line if name.startswith("test")))
        _require_numbers(config, "seed", "epochs")
        info = info_of(read_facts(workdir), config["dataset"])
        model = create_model(num_classes=info.num_classes, **config["model"])
        return Run(
            path=path,
            config=dict(flatten(config))
            | {"dataset": info.name, "digest of the data": info.digest},
            lines=lines,
            accuracies={
                line["epoch"]: value_on("test", "accuracy", line) for line in tested
            },
            best={
                line["epoch"]: value_on("best_test", "accuracy", line)
                for line in tested
                if config["validation"]
            },
            costs=summarise(model, info.image_shape),
        )
    except Exception as error:  # no directory, no JSON, other JSON than train.py's
        raise InputError(
            f"run is {path!r:.300}, which can't be read ({in_one_line(error)}); it "
            "must be a workdir of train.py with an evaluated epoch"
        ) from None


def _require_numbers(fields, *names):
    for name in names:
        if not isinstance(fields[name], int | float):
            raise ValueError(f"{name} is {fields[name]!r:.90}")


def _labels(groups):
    """The common start of the paths of each group, as short as it can be."""
    parts = [[run.path.split("/") for run in runs] for runs in groups]
    above = len(_common_start([path[:-1] for of_group in parts for path in of_group]))
    names = [["/".join(path[above:]) for path in of_group] for of_group in parts]
    listed = [", ".join(of_group) for of_group in names]
    short = [_common_start(of_group).rstrip("-_./ ") for of_group in names]
    return short if all(short) and len(set(short)) == len(short) else listed


def _common_start(names):
    first, last = min(names), max(names)
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(first, last, strict=False)
    )
    return first[: len(list(same))]
