"""What becomes of the best: repeated over seeds, pictured, and its student in MLflow's registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import config as config_module
from harness import task as tasks
from harness.config import Config, build, to_dict
from harness.config.parse import merge
from harness.networks import preprocessing, roles
from harness.networks.layers import evaluating
from harness.run import metrics, pictures
from harness.tracking import Experiment
from harness.training.record import NUM_SAMPLES, class_names
from tune import journal, probe, trial
from tune.journal import STATUS, Entry
from tune.plan import Plan
from tune.report import best_config

PATIENCE = 600.0
"""Seconds for MLflow to take the best student: nothing waits for the end of a sweep as for that of a run."""

REPORTED = ("report.md", "trials.csv", "best.yaml", "parallel.png")
"""Files of the sweep's folder that go to its MLflow run."""


def repetitions(plan: Plan, base: Config, best: dict[str, Any], seeds: Sequence[int]) -> list[tuple[Config, Path]]:
    """Configurations and folders of the best and of the defaults, each with every seed."""
    kinds = {"best": best_config(plan, base, Entry(**best)), "default": base}
    return [
        (build(merge(to_dict(config), {"seed": seed})), plan.folder / "repeated" / f"{kind}-{best['id']}-seed-{seed}"
         if kind == "best" else plan.folder / "repeated" / f"{kind}-seed-{seed}")
        for kind, config in kinds.items()
        for seed in seeds
    ]  # fmt: skip


def publish(plan: Plan, base: Config, found: dict[str, Any], parent: Experiment, say: Callable[[str], None]) -> None:
    """The report to the sweep's MLflow run, pictures of the best to its own, and its student to the registry."""
    best = Entry(**found["best"])
    path, config = plan.folder / best.folder, journal.configuration(plan, best)
    for name in REPORTED:
        if (plan.folder / name).exists():
            parent.picture(plan.folder / name, "report")
    for name in ("best", "correlation", "limit", "repetitions"):
        parent.tag(name, found[name])
    experiment = Experiment(config, path, {}, say, again=False)
    for picture in _pictures(config, path):
        experiment.picture(picture, "best")
    lineage = {
        "sweep": plan.folder.name,
        "sweep_run": plan.parent,
        "trial": best.id,
        "objective": plan.words,
        "value": best.objective,
        "seed": config.seed,
        "teacher_sha256": (found["teacher"] or {}).get("sha256"),
        "probe_sha256": found["probe_sha256"],
    }
    student = trial.student(config, path)
    experiment.register(student, config_module.image_shape(config), f"ddad-{base.recipe}", lineage)
    experiment.tag("best", value=True)
    experiment.close(STATUS[best.outcome], PATIENCE)


def _pictures(config: Config, path: Path) -> list[Path]:
    """Curves of a trial, and images of its generator with what teacher and student say of them."""
    curves, samples = path / "curves.png", path / "samples.png"
    pictures.curves(metrics.read(path / "metrics.jsonl"), curves, f"{config.recipe}, {path.name}")
    checkpoint = probe.last_checkpoint(path)
    assert checkpoint is not None
    x = next(probe.generated(config, checkpoint, "samples"))[:NUM_SAMPLES]
    student, teacher = trial.student(config, path), roles.teacher(config).to(x.device)
    with evaluating([student, teacher]):
        t, s = teacher(x).float().cpu(), student(x).float().cpu()
    rgb = preprocessing.preprocessing(config).denormalise(x.float()).cpu()
    caption = f"{config.recipe}, the sweep's best, {path.name}"
    pictures.save_grid(tasks.load(config.task), samples, rgb, t, s, class_names(config), caption)
    return [curves, samples]
