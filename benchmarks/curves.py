"""Accuracy by round of several runs: a markdown table on standard output and a figure.

    python -m benchmarks.curves RUN [RUN ...] --figure accuracy.png [--published-images N]

Every figure comes from the run folders: `result.json` for the final state, `metrics.jsonl` (with `evaluate_every`
set) for the curve, `environment.json` for hardware and versions. A run with an untrained teacher is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness import task
from harness.compare.markdown import pipe_table
from harness.errors import UserError
from harness.run import folder, metrics

HEADER = [
    "method", "seed", "rounds", "student updates", "share of published images", "teacher", "student", "agreement",
    "seconds",
]  # fmt: skip


def read(run: Path) -> dict[str, Any]:
    """A finished run: its result, its curve [(round, score)], and what it ran on."""
    result = folder.result(run)
    if result is None:
        raise UserError(f"{run} is not finished")
    if (result["teacher"] or {}).get("untrained"):
        raise UserError(f"{run} has an untrained teacher: its figures mean nothing")
    config, _ = folder.read_config(run)
    metric = task.load(result["task"]).primary_metric
    key = f"evaluation/student_{metric}"
    curve = [(row["round"], row[key]) for row in metrics.read(run / "metrics.jsonl") if key in row]
    return {**result, "metric": metric, "curve": curve, "batch_size": config.batch_size}


def row(run: dict[str, Any], published_images: int) -> list[str]:
    """A line of the table; scores in percent."""
    share = run["student_updates"] * run["batch_size"] / published_images
    scores = (run["teacher"][run["metric"]], run["student"][run["metric"]], run["agreement"])
    cells = [run["method"], run["seed"], run["rounds"], run["student_updates"], f"{share:.2%}"]
    return [*map(str, cells), *(f"{score:.2%}" for score in scores), f"{run['wall_seconds']:.0f}"]


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """The curves, from the first evaluation to the final state."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for run in runs:
        rounds, scores = zip(*run["curve"], strict=True)
        axes.plot(rounds, [100 * score for score in scores], marker="o", label=f"{run['method']}, seed {run['seed']}")
    first = runs[0]
    axes.axhline(100 * first["teacher"][first["metric"]], color="grey", linestyle="--", label="teacher")
    axes.set(xlabel="round", ylabel=f"student's test {first['metric']}, %", ylim=(0, 100), title=first["recipe"])
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Reads, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--published-images", type=int, default=500 * 50 * 5 * 256, help="images DFAD's student sees")
    options = parser.parse_args()
    runs = [read(run) for run in options.runs]
    print("\n".join(pipe_table(HEADER, [row(run, options.published_images) for run in runs], num_text=1)))
    draw(runs, options.figure)


if __name__ == "__main__":
    main()
