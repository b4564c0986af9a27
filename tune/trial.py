"""The runs of a sweep: a trial, the default run, a repetition over seeds. Each is `harness.training.distill.rounds`.

The state of a run is its run folder: the same call continues in it after an interruption. This module does not use Ray.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from harness.config import Config
from harness.errors import Diverged, UserError
from harness.networks import roles
from harness.run import folder
from harness.training import distill
from tune import configs, generated, population, probe, run_folders
from tune.plan import PROBE_METRIC, Plan, oracle_metric, probe_metric
from tune.population import Origin


@dataclass(frozen=True)
class TrialResult:
    """One result of a trial, as it is reported to Ray Tune: the scores of its student after an evaluation."""

    objective: float
    """What the sweep maximises; 0, the lowest value, for a trial that failed."""
    student_updates: int
    """Updates of the student so far, the time axis of the schedulers."""
    round: int
    folder: str
    """The run folder."""
    outcome: str | None = None
    """`finished` or `failed`; None while the trial runs."""
    error: str | None = None
    """Why it failed."""
    agreement: float | None = None
    """Agreement with the teacher on the probe."""
    oracle: float | None = None
    """The task's metric on real data, if there is data."""


Results = Generator[TrialResult, None, None]


def rank() -> int:
    """The rank of this process in the run. Only rank 0 reads and writes the run folder."""
    return int(os.environ.get("RANK", "0"))


def train_here(plan: Plan, config: Config, path: Path) -> Results:
    """Trains this process's part of a trial. Yields a result after each evaluation on rank 0, none on other ranks."""
    if rank() == 0:
        population.wait_until_closed(path)
    with closing(distill.rounds(config, path, judge=probe_judge(plan, config))) as reports:
        for report in reports:
            if rank() > 0:
                continue
            if report.result is not None:
                values = run_folders.final_values(path)
                yield _result(plan, config, path, report.round, values, "finished")
            elif report.round % config.evaluate_every == 0 and report.round < config.rounds:
                yield _result(plan, config, path, report.round, report.values)


Train = Callable[[Plan, Config, Path], Results]
"""Trains a trial and yields its results: `train_here`, or that function in each of several processes."""


def run(
    plan: Plan, trial_id: str, sample: dict[str, Any], origin: Origin | None = None, train: Train = train_here
) -> Results:
    """Runs a trial. Yields a result after each evaluation and its checkpoint; the last result has an outcome.

    A loss that is not finite and a configuration that cannot run make this trial fail, not the sweep.
    """
    path, config = plan.trials_folder / trial_id, None
    try:
        config = configs.of_trial(plan, sample)
        if plan.scheduler == "pbt":
            config, path = population.branch(plan, config, path, origin)
        yield from train(plan, config, path)
    except (Diverged, UserError) as error:
        done = run_folders.last_round(path)
        updates = done * config.student_steps if config else 0
        yield TrialResult(0.0, updates, done, str(path), "failed", str(error))


def last_result(plan: Plan, config: Config, path: Path) -> TrialResult | None:
    """The result of the last evaluation in a run folder; None if there was no evaluation."""
    rows = [row for row in run_folders.rows(path) if row.get(plan.metric) is not None]
    return _result(plan, config, path, rows[-1]["round"], rows[-1]) if rows else None


def _result(
    plan: Plan, config: Config, path: Path, round_index: int, values: Mapping[str, Any], outcome: str | None = None
) -> TrialResult:
    names = {"agreement": PROBE_METRIC, "oracle": oracle_metric(config)}
    scores = {field: values.get(name) for field, name in names.items() if name}
    updates = round_index * config.student_steps
    return TrialResult(float(values[plan.metric]), updates, round_index, str(path), outcome, **scores)


def probe_judge(plan: Plan, config: Config) -> Callable[[nn.Module], dict[str, float]]:
    """The function that adds a student's data-free objectives on the probe to the metrics of each evaluation."""
    loaded = probe.load(plan.probe_file)

    def judge(student: nn.Module) -> dict[str, float]:
        return {probe_metric(name): value for name, value in probe.scores(loaded, student, config.batch_size).items()}

    return judge


def default_run(plan: Plan, index: int = 0) -> None:
    """Runs the recipe without a sample, and makes the probe from its checkpoints; existing files are kept.

    With `index` another of the runs whose generators make the probe (`tune.configs.sources`), one after the other.
    """
    sources, target = configs.sources(plan), plan.probe_file.parent
    if rank() == 0:
        probe.collect(sources, target, plan.probe_images)
    for _ in distill.rounds(sources[index].config, sources[index].run):
        if rank() == 0:
            probe.collect(sources, target, plan.probe_images)


def repeat(plan: Plan, config: Config, path: Path) -> dict[str, Any]:
    """Runs a configuration to its end, with evaluations on the probe; returns its final values, or {"error": ...}."""
    config = configs.of_repetition(plan, config)
    try:
        for _ in distill.rounds(config, path, judge=probe_judge(plan, config)):
            pass
        return run_folders.final_values(path) if rank() == 0 else {}
    except Diverged as error:
        return {"error": str(error)}


def student(config: Config, path: Path) -> nn.Module:
    """The student in the last checkpoint of a run folder; UserError if there is no checkpoint."""
    checkpoint = generated.last_checkpoint(path)
    if checkpoint is None:
        raise UserError(f"{path} has no checkpoint yet: resume the sweep")
    return generated.restored(roles.student(config, folder.structure(path)), checkpoint, "student")
