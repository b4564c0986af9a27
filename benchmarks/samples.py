"""What each method's generator makes at the end of a run: a row of images for each, side by side.

python -m benchmarks.samples "warm=runs/methods/cifar10-resnet32-half-ddad-920bdc79" cmi=RUN --figure FILE.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from harness.config import Config
from harness.networks import preprocessing
from harness.run import folder as run_folder
from tune.generated import images, last_checkpoint

COLUMNS = 16
"""Images of a method."""


def sample(config: Config, checkpoint: Path, rows: int = 1, columns: int = COLUMNS) -> np.ndarray:
    """Images of the last generator, or out of the last pool: [rows * (H + 1), columns * (W + 1), 3] in 0..1."""
    source, x = images(config, checkpoint, "samples"), torch.empty(0)
    while len(x) < rows * columns:
        x = torch.cat([x, next(source).float().cpu()])
    shown = preprocessing.preprocessing(config).denormalise(x[: rows * columns])
    shown = functional.pad(shown, (0, 1, 0, 1), value=1.0).permute(0, 2, 3, 1)  # gaps
    return np.concatenate(
        [np.concatenate(list(row), 1) for row in shown.numpy().reshape(rows, columns, *shown.shape[1:])]
    )


def draw(runs: Mapping[str, tuple[Config, Path]], path: Path, title: str) -> None:
    """A row for each (configuration, run folder) that still has a checkpoint."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = {name: (config, last_checkpoint(folder)) for name, (config, folder) in runs.items()}
    rows = {name: sample(config, checkpoint) for name, (config, checkpoint) in found.items() if checkpoint}
    if not rows:
        return
    figure, all_axes = plt.subplots(len(rows), figsize=(9, 0.6 * len(rows) + 0.4), layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=10)
    for axes, (name, row) in zip(all_axes[:, 0], rows.items(), strict=True):
        axes.imshow(row, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """The picture of run folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--title", default="generated images")
    parser.add_argument("--figure", type=Path, required=True)
    given = parser.parse_args()
    runs = {name: Path(run) for name, _, run in (word.partition("=") for word in given.runs)}
    draw({name: (run_folder.read_config(run)[0], run) for name, run in runs.items()}, given.figure, given.title)


if __name__ == "__main__":
    main()
