"""Curves of a run."""

import io
from collections.abc import Sequence
from typing import Any

from etils import epath


def plot_curves(lines: Sequence[dict[str, Any]], path: epath.Path) -> None:
    """Draws loss and accuracy by epoch, training and test, as a PNG.

    Args:
      lines: of `metrics.jsonl`.
      path: of the picture.
    """
    import matplotlib.figure  # slow to import, and needed once a run

    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name, scale in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), strict=True
    ):
        for split in ("train", "test"):
            points = [
                (line["epoch"], line[f"{split}_{name}"] * scale)
                for line in lines
                if f"{split}_{name}" in line
            ]
            if points:
                axes.plot(*zip(*points, strict=True), ".-", label=split)
        axes.set(xlabel="epoch", ylabel=name if scale == 1 else f"{name} in %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=150)
        path.write_bytes(file.getvalue())
