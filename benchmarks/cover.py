"""The picture at the top of README: `python -m benchmarks.cover RUN [RUN ...] FILE.png`.

On the left images that the generator of the first run made last, on the right the agreement of each run's student with
its teacher on the test images, along the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from harness import files
from harness.run import folder, metrics
from harness.run.palette import COLOURS


def draw(runs: list[Path], path: Path) -> None:
    """Writes the picture of finished runs with evaluations along the way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    samples = max((runs[0] / "samples").glob("round-*.png"))
    left.imshow(np.asarray(Image.open(samples)))
    left.set_axis_off()
    for run, colour in zip(runs, COLOURS, strict=False):
        config, _ = folder.read_config(run)
        key = "evaluation/agreement"
        rows = [row for row in metrics.read(run / "metrics.jsonl") if key in row]
        points = [(row["round"], 100 * row[key]) for row in rows]
        label = f"{config.method}, {config.variant}: {points[-1][1]:.1f} %"
        right.plot(*zip(*points, strict=True), marker="o", ms=3, color=colour, label=label)
    right.set(
        xlabel="round", ylabel="student and teacher agree on, % of the test images", ylim=(0, 100), xlim=(0, None)
    )
    right.grid(alpha=0.25, lw=0.6)
    right.spines[["top", "right"]].set_visible(False)
    right.legend(loc="lower right", frameon=False)
    with files.atomic(path) as temporary:
        figure.savefig(temporary)


if __name__ == "__main__":
    *given, target = map(Path, sys.argv[1:])
    draw(given, target)
