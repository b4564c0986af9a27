"""The runs of a sweep in MLflow: the sweep's own, and below it one for each run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import tracking
from harness.config import Config, flat
from harness.run import folder as run_folder
from harness.tracking import Experiment, Status
from tune import configs, probe, run_folders, spaces
from tune.plan import Plan

STATUS: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED", "pruned": "KILLED", "stopped": "KILLED"}
"""The MLflow status for the outcome of a trial. MLflow has no status for a pruned trial; the tag `outcome` says it."""


def open_parent(plan: Plan, base: Config, echo: Callable[[str], None]) -> Experiment:
    """The sweep's own run, the parent of all others, with the plan as its parameters."""
    tags = {"kind": "sweep", "objective": plan.objective_text, "data_free_objective": plan.data_free,
            "probe_images": plan.probe_images, "commit": run_folder.commit()}  # fmt: skip
    parent = Experiment(base, plan.folder, tags, echo)
    parent.params({
        **{name: getattr(plan, name) for name in ("objective", "probe_images", "searcher", "scheduler", "trials",
                                                  "total_rounds", "minutes", "cpus", "gpus", "parallel")},
        **{f"space.{path}": text for path, text in spaces.to_plain(plan.space).items()},
        **flat(base),
    })  # fmt: skip
    return parent


def log_probe(plan: Plan, parent: Experiment) -> None:
    """The probe's hash and probe.json to the sweep's run; UserError if the probe has changed since it was made."""
    parent.tag("probe_sha256", probe.load(plan.probe_file).sha256)
    parent.picture(plan.probe_file.with_name("probe.json"), "probe")


def end_trial(plan: Plan, path: Path, outcome: str, error: str | None, echo: Callable[[str], None]) -> None:
    """Ends the run of the trial in the run folder `path`: its status, its outcome and its parameters.

    The trial's own process may have ended without doing so.
    """
    config = configs.recorded(plan, path)
    tags = {"outcome": outcome, "objective": plan.objective_text, "error": error}
    experiment = Experiment(config, path, tags, echo, again=False)
    experiment.params(flat(config))
    for key, value in tags.items():
        if value is not None:
            experiment.tag(key, value)
    if outcome == "finished" and plan.scheduler == "pbt":
        experiment.tag("weights", dataclasses.asdict(config.weights))
    experiment.close(STATUS[outcome])


def close_running(plan: Plan, outcomes: Mapping[Path, str], echo: Callable[[str], None]) -> None:
    """Ends the runs of the sweep that are still RUNNING, because their processes were killed.

    `outcomes` holds {run folder: outcome} of the trials that have ended. All other runs become FINISHED if they have a
    result, else KILLED; `--resume` sets those that continue to RUNNING again.
    """
    statuses: dict[Path, Status] = {path: STATUS[outcome] for path, outcome in outcomes.items()}
    trials = run_folders.find(plan.trials_folder)
    others = [*plan.folder.glob("sources/*"), *plan.folder.glob("repeated/*")]
    for path in [plan.default_folder, *trials, *others]:
        statuses.setdefault(path, "KILLED" if run_folder.result(path) is None else "FINISHED")
    tracking.set_final_status(plan.base.tracking.uri, statuses, echo)
