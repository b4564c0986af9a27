"""One trial: a sample of the space laid over the recipe, run by `harness.training.distill.rounds`. Knows no Ray.

A trial's state is its run folder: the same call goes on in it, wherever and however often it was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from harness import config as config_module
from harness import files, tracking
from harness.config import Config, build, to_dict
from harness.config.parse import merge
from harness.errors import Diverged, UserError
from harness.methods.terms import weight_at
from harness.networks import roles
from harness.run import folder as run_folder
from harness.run import metrics
from harness.training import distill
from tune import probe as probes
from tune.plan import PROBE, REPORTS, Plan, bookkeeping, configuration, oracle

ORIGIN = "origin.json"
"""The file in a branch's run folder that names the run folder it was copied from, and the round."""


@dataclass(frozen=True)
class Origin:
    """A state to go on from: a trial's own, or another's whose place in the population it takes."""

    folder: str
    round: int


@dataclass(frozen=True)
class Standing:
    """How a trial stands when it is judged."""

    objective: float
    """What the sweep maximises; 0, the least there is, for one that failed."""
    student_updates: int
    round: int
    folder: str
    outcome: str | None = None
    """`finished`, or `failed`; None while it runs."""
    error: str | None = None
    agreement: float | None = None
    """On the probe."""
    oracle: float | None = None
    """On real data, where there is some."""


Standings = Generator[Standing, None, None]


def rank() -> int:
    """The index of this process among those that play a run; 0 speaks for all."""
    return int(os.environ.get("RANK", "0"))


def standings(plan: Plan, config: Config, path: Path) -> Standings:
    """This process's part of a trial: a Standing at each of its judgements, on rank 0; nothing on others."""
    if rank() == 0:
        _await_closed(path)
    with closing(distill.rounds(config, path, judge=judge(plan, config))) as reports:
        for report in reports:
            if rank() > 0:
                continue
            if report.result is not None:
                yield _standing(plan, config, path, report.round, final_values(path), "finished")
            elif report.round % config.evaluate_every == 0 and report.round < config.rounds:
                yield _standing(plan, config, path, report.round, report.values)


Play = Callable[[Plan, Config, Path], Standings]
"""How a trial's processes play it: `standings` where there is one."""


def run(
    plan: Plan, trial_id: str, sample: dict[str, Any], origin: Origin | None = None, play: Play = standings
) -> Standings:
    """The trial, a Standing at each of its judgements, each with a checkpoint; the last has an outcome.

    A loss that is not finite, or a configuration that cannot be run, ends this trial alone.
    """
    path, config = plan.trials_folder / trial_id, None
    try:
        config = bookkeeping(configuration(plan, sample), plan)
        if plan.scheduler == "pbt":
            config, path = lineage(plan, config, path, origin)
        yield from play(plan, config, path)
    except (Diverged, UserError) as error:
        done = last_round(path)
        updates = done * config.student_steps if config else 0
        yield Standing(0.0, updates, done, str(path), "failed", str(error))


def standing(plan: Plan, config: Config, path: Path) -> Standing | None:
    """How a trial stood at its last judgement, from its folder; None where there was none."""
    rows = metrics.read(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
    judged = [row for row in rows if plan.metric in row]
    return _standing(plan, config, path, judged[-1]["round"], judged[-1]) if judged else None


def _standing(
    plan: Plan, config: Config, path: Path, round_index: int, values: Mapping[str, Any], outcome: str | None = None
) -> Standing:
    names = {"agreement": PROBE, "oracle": oracle(config)}
    scores = {what: values.get(name) for what, name in names.items() if name}
    updates = round_index * config.student_steps
    return Standing(float(values[plan.metric]), updates, round_index, str(path), outcome, **scores)


def judge(plan: Plan, config: Config) -> Callable[[nn.Module], dict[str, float]]:
    """What `rounds` asks about the student whenever an evaluation is due: its agreement on the sweep's probe."""
    agreement = probes.judge(probes.load(plan.probe_file), config.batch_size)
    return lambda student: {PROBE: agreement(student)}


def final_values(path: Path) -> dict[str, Any]:
    """All values of the last round of a run's metrics."""
    rows = metrics.read(path / "metrics.jsonl")
    return {name: value for row in rows if row["round"] == rows[-1]["round"] for name, value in row.items()}


def last_round(path: Path) -> int:
    """The last round that a run folder reports; 0 where there is none."""
    rows = metrics.read(path / "metrics.jsonl") if (path / "metrics.jsonl").exists() else []
    return int(rows[-1]["round"]) if rows else 0


def first_round(path: Path) -> int:
    """The round from which on a run folder holds rounds of its own: 0, or in a branch the round of its origin."""
    file = path / ORIGIN
    return int(json.loads(file.read_text())["round"]) if file.exists() else 0


def run_folders(trials: Path, trial_id: str | None = None) -> list[Path]:
    """The run folders below `trials`, of all trials or of one, the one with most copied rounds last.

    A hidden folder is a branch whose copy was interrupted: it is no run.
    """
    found = [path for path in sorted(trials.glob("*")) if path.is_dir() and not path.name.startswith(".")]
    return sorted((path for path in found if trial_id in (None, id_of(path))), key=first_round)


def id_of(path: Path) -> str:
    """The id of the trial that a run folder belongs to."""
    return path.name.partition("-")[0]


def default(plan: Plan) -> None:
    """The recipe's defaults, run in the sweep's folder, and the probe out of it; what is there already is kept."""
    config = plan.base
    every = probes.interval(config.rounds)
    over = {
        "evaluate_every": math.ceil(config.rounds / 8),
        "checkpoint": {"every": every, "keep": 2},
        "log_every": every if config.log_every > every else math.gcd(every, config.log_every),
        "tracking": {"parent": plan.parent, "model": False},
    }
    config = build(merge(to_dict(config), over))
    path, target = plan.default_folder, plan.probe_file.parent
    if rank() == 0:
        probes.collect(config, path, target)
    for _ in distill.rounds(config, path):
        if rank() == 0:
            probes.collect(config, path, target)


def repeat(plan: Plan, config: Config, path: Path) -> dict[str, Any]:
    """A whole run by itself, judged on the probe too, REPORTS times; its values, or the error that ended it."""
    try:
        every = config.evaluate_every or math.ceil(config.rounds / REPORTS)
        over = {"evaluate_every": every, "tracking": {"parent": plan.parent, "model": False}}
        config = build(merge(to_dict(config), over))
        for _ in distill.rounds(config, path, judge=judge(plan, config)):
            pass
        return final_values(path) if rank() == 0 else {}
    except Diverged as error:
        return {"error": str(error)}


def student(config: Config, path: Path) -> nn.Module:
    """The student as it stands in a run folder's last checkpoint; UserError where there is none."""
    found = probes.last_checkpoint(path)
    if found is None:
        raise UserError(f"{path} holds no checkpoint yet")
    return probes.restored(roles.student(config), found, "student")


def lineage(plan: Plan, config: Config, path: Path, origin: Origin | None) -> tuple[Config, Path]:
    """Configuration and folder of a trial of a population that starts, goes on, or takes over another's state.

    Weights that change during a run are a schedule: that of the state's origin, with the new values from its round on.
    Each schedule is a run of its own, in a folder of its own, which begins with the origin's checkpoint.
    """
    if origin is None:
        return config, path
    recorded, _ = run_folder.read_config(Path(origin.folder))
    searched = {path.removeprefix("weights.") for path in plan.space}  # any other is as it was, a schedule too
    weights = {
        name: _schedule(old, getattr(config.weights, name), origin.round) if name in searched else old
        for name, old in vars(recorded.weights).items()
    }
    if weights == vars(recorded.weights) and id_of(Path(origin.folder)) == path.name:
        return dataclasses.replace(config, weights=recorded.weights), Path(origin.folder)
    config = build(merge(to_dict(config), {"weights": weights}))
    branch = path.with_name(f"{path.name}-{config_module.identity(config)}")
    if not branch.exists():
        _await_closed(path)
        _await_note(path / "mlflow.json", config)
        _graft(Path(origin.folder), origin.round, config, branch, path / "mlflow.json")
    return config, branch


def _await_closed(path: Path) -> None:
    """Until nobody is in a run folder: a thread that was stopped at its last judgement may still close its record."""
    if path.exists():
        with files.lock(path / ".lock", wait=True):
            pass


def _await_note(note: Path, config: Config) -> None:
    """Until the thread that opens MLflow has noted the trial's run, a minute at most: a slow store outlasts a close."""
    end = time.monotonic() + 60
    while config.tracking.uri != tracking.OFF and not note.exists() and time.monotonic() < end:
        time.sleep(0.1)


def _schedule(old: Any, new: Any, round_index: int) -> Any:
    """A weight that was `old` and is `new` from a round on."""
    if new == weight_at(old, round_index):
        return old
    before = old if isinstance(old, list) else [[0, old]]
    return [*([start, value] for start, value in before if start < round_index), [round_index, new]]


def _graft(origin: Path, round_index: int, config: Config, branch: Path, note: Path) -> None:
    """A run folder that stands where another stood after a round; `note` names the MLflow run to go on in."""
    growing = branch.with_name(f".{branch.name}.{os.getpid()}")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    run_folder.open_run(growing, config)
    name = f"round-{round_index:08d}.safetensors"
    (growing / "checkpoints").mkdir()
    shutil.copy(origin / "checkpoints" / name, growing / "checkpoints" / name)
    shutil.copy(origin / "metrics.jsonl", growing)
    metrics.Log(growing / "metrics.jsonl", keep_through=round_index).close()
    files.write(growing / ORIGIN, json.dumps({"folder": origin.name, "round": round_index}) + "\n")
    if note.exists():
        shutil.copy(note, growing)
    growing.replace(branch)
