"""Plans, run folders and records of sweeps for tests, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from harness import files
from harness.config import Config, to_dict
from tune import configs, population, run_folders, spaces
from tune.plan import PROBE_METRIC, Plan
from tune.population import Origin
from tune.records import TrialRecord

REAL_METRIC = "evaluation/student_accuracy"

OVERRIDES: dict[str, Any] = {
    "rounds": 8,
    "batch_size": 16,
    "teacher": {"network": "cnn8", "checkpoint": "untrained"},
    "student": {"network": "cnn4"},
    "generator": {"width": 8, "latent_size": 8},
    "tracking": {"uri": "none"},
    "pictures": False,
}

SAMPLE = {"weights.adversarial": 2.0, "weights.one_hot": 0.1}


def make_plan(folder: Path, **fields: Any) -> Plan:
    """A plan of four trials over the loss weights of a small digits run; `fields` are others of Plan."""
    known: dict[str, Any] = {"space": spaces.find("loss_weights"), "trials": 4, "working_dir": folder, **fields}
    return Plan("digits", None, known.pop("overrides", OVERRIDES), folder=folder / "sweep", **known)


def make_record(trial_id: str, outcome: str, objective: float | None, **fields: Any) -> TrialRecord:
    """The record of a trial with equal objective and agreement, after 8 rounds."""
    known: dict[str, Any] = {
        "folder": f"trials/{trial_id}", "sample": SAMPLE, "error": None, "agreement": objective, "oracle": 0.5,
        "student_updates": 40, "round": 8,
    }  # fmt: skip
    return TrialRecord(id=trial_id, outcome=outcome, objective=objective, **{**known, **fields})


def add_rounds(path: Path, config: Config, rounds: range, scores: tuple[float, float] = (0.5, 0.5)) -> None:
    """Adds rounds to a run folder, each with an evaluation and an empty checkpoint.

    `scores` are the agreement on the probe and the metric on real data; both rise by .01 in each round.
    """
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    if not (path / "config.yaml").exists():
        files.write(path / "config.yaml", yaml.safe_dump({**to_dict(config), "records": {}}))
    with (path / "metrics.jsonl").open("a") as file:
        for index in rounds:
            values = {PROBE_METRIC: scores[0] + index / 100, REAL_METRIC: scores[1] + index / 100}
            file.write(json.dumps({"round": index, "seconds": 1.0, **values}) + "\n")
            (path / "checkpoints" / f"round-{index:08d}.safetensors").write_bytes(b"")


def make_population(folder: Path, **fields: Any) -> tuple[Plan, list[tuple[Path, int]], int]:
    """The plan of a population, the results of its two trials as (run folder, round), and the number of rounds trained.

    Trial `donor` trains 8 rounds. Trial `taker` trains 6 rounds, continues from the donor's round 4 with another
    adversarial weight, and trains 4 more rounds.
    """
    plan = make_plan(folder, scheduler="pbt", **fields)
    config = configs.of_trial(plan, SAMPLE)
    donor, taker = plan.trials_folder / "donor", plan.trials_folder / "taker"
    add_rounds(donor, config, range(1, 9))
    add_rounds(taker, config, range(1, 7), (0.3, 0.2))
    changed = configs.of_trial(plan, {**SAMPLE, "weights.adversarial": 3.0})
    config, branch = population.branch(plan, changed, taker, Origin(str(donor), 4))
    assert branch.name.startswith("taker-")
    assert [row["round"] for row in run_folders.rows(branch)] == [1, 2, 3, 4]
    add_rounds(branch, config, range(5, 9), (0.1, 0.4))
    results = [(donor, index) for index in range(1, 9)] + [(taker, index) for index in range(1, 7)]
    return plan, results + [(branch, index) for index in range(5, 9)], 8 + 6 + 4
