"""The picture at the top of README: `python -m benchmarks.cover RUN FILE.png`.

On the left images that the generator of a finished run makes in the end, on the right the agreement of students and
teacher along runs of benchmarks.parts: CIFAR-10, a new ResNet-20, 1,800 seconds, seed 0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import samples
from benchmarks.equal_time import curve, rows
from harness import files
from harness.errors import UserError
from harness.run import folder
from harness.run.palette import COLOURS
from tune.generated import last_checkpoint

SHOWN = {
    "blocks + batches of 32": "ddad, variant blocks",
    "fast + batches of 32": "fast",
    "nayer + batches of 32": "nayer",
}
"""What the rows of benchmarks.parts are called in the picture: ours and the best two as published."""


def draw(run: Path, path: Path) -> None:
    """Writes the picture; UserError where the run has no checkpoint."""
    from matplotlib.figure import Figure

    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint")
    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    left.imshow(samples.sample(folder.read_config(run)[0], checkpoint, 8, 8))
    left.set_title("invented images", fontsize=11)
    left.set_axis_off()
    runs = {row["name"]: row for row in rows("cifar10-parts") if (row["budget"], row["seed"]) == ("seconds=1800", 0)}
    for (name, shown), colour in zip(SHOWN.items(), COLOURS, strict=False):
        if row := runs.get(name):
            seconds, agreement = curve(row)
            label = f"{shown}: {agreement[-1]:.1f} %"
            right.plot([each / 60 for each in seconds], agreement, marker="o", ms=4, color=colour, label=label)
    right.set(xlabel="minutes of one thread", ylim=(0, 100), xlim=(0, 31))
    right.set_title("student and teacher agree on, % of the test images", fontsize=11)
    right.grid(alpha=0.25, lw=0.6)
    right.spines[["top", "right"]].set_visible(False)
    right.legend(loc="lower right", frameon=False)
    with files.atomic(path) as temporary:
        figure.savefig(temporary)


if __name__ == "__main__":
    try:
        draw(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(f"benchmarks.cover: {error}")
