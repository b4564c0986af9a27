"""After the search: which repetitions over seeds to run, and what goes to MLflow of the report and the best trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import config as config_module
from harness import task as tasks
from harness.config import Config
from harness.networks import preprocessing, roles
from harness.networks.layers import evaluating
from harness.run import metrics, pictures
from harness.tracking import Experiment
from harness.training.record import NUM_SAMPLES, class_names
from tune import configs, generated, trial
from tune.mlflow_runs import STATUS
from tune.plan import Plan
from tune.records import TrialRecord

CLOSE_SECONDS = 600.0
"""The longest wait for MLflow to store the best student; longer than at the end of a run, because nothing follows."""

REPORT_FILES = ("report.md", "trials.csv", "best.yaml", "parallel.png")
"""Files of the sweep's folder that are logged to its MLflow run."""


def repetitions(plan: Plan, base: Config, best: dict[str, Any], seeds: Sequence[int]) -> list[tuple[Config, Path]]:
    """The configurations and run folders of the best trial and of the recipe, with each of the seeds."""
    kinds = {f"best-{best['id']}": configs.of_best(plan, base, plan.folder / best["folder"]), "default": base}
    return [
        (configs.with_seed(config, seed), plan.folder / "repeated" / f"{kind}-seed-{seed}")
        for kind, config in kinds.items()
        for seed in seeds
    ]


def publish(plan: Plan, base: Config, content: dict[str, Any], parent: Experiment, echo: Callable[[str], None]) -> None:
    """Logs the report to the sweep's MLflow run and pictures to the best trial's, and registers the best student.

    `content` is that of report.json.
    """
    best = TrialRecord(**content["best"])
    path = plan.folder / best.folder
    config = configs.recorded(plan, path)
    for name in REPORT_FILES:
        if (plan.folder / name).exists():
            parent.picture(plan.folder / name, "report")
    for name in ("best", "correlation", "limit", "repetitions"):
        parent.tag(name, content[name])
    experiment = Experiment(config, path, {}, echo, again=False)
    for picture in _pictures(config, path):
        experiment.picture(picture, "best")
    lineage = {
        "sweep": plan.folder.name,
        "sweep_run": plan.parent,
        "trial": best.id,
        "objective": plan.objective_text,
        "probe_images": plan.probe_images,
        "value": best.objective,
        "seed": config.seed,
        "teacher_sha256": (content["teacher"] or {}).get("sha256"),
        "probe_sha256": content["probe_sha256"],
    }
    student = trial.student(config, path)
    experiment.register(student, config_module.image_shape(config), f"ddad-{base.recipe}", lineage)
    experiment.tag("best", value=True)
    experiment.close(STATUS[best.outcome], CLOSE_SECONDS)


def _pictures(config: Config, path: Path) -> list[Path]:
    """Draws the curves of a trial, and its generated images with the predictions of teacher and student."""
    curves, samples = path / "curves.png", path / "samples.png"
    pictures.curves(metrics.read(path / "metrics.jsonl"), curves, f"{config.recipe}, {path.name}")
    checkpoint = generated.last_checkpoint(path)
    assert checkpoint is not None
    x = next(generated.images(config, checkpoint, "samples"))[:NUM_SAMPLES]
    student, teacher = trial.student(config, path), roles.teacher(config).to(x.device)
    with evaluating([student, teacher]):
        t, s = teacher(x).float().cpu(), student(x).float().cpu()
    rgb = preprocessing.preprocessing(config).denormalise(x.float()).cpu()
    caption = f"{config.recipe}, best trial of the sweep, {path.name}"
    pictures.save_grid(tasks.load(config.task), samples, rgb, t, s, class_names(config), caption)
    return [curves, samples]
