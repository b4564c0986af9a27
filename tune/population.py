"""Population-based training: a trial that continues from another trial's checkpoint with other weights.

Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846. The weights of such a run are schedules
[[round, value], ...]. Each set of schedules is a run of its own, in a run folder of its own: a branch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import config as config_module
from harness import files, tracking
from harness.config import Config, build, parse, to_dict
from harness.methods.terms import weight_at
from harness.run import folder as run_folder
from harness.run import metrics
from tune import run_folders
from tune.plan import Plan

NOTE_SECONDS = 60.0
"""The longest wait for the file that names a trial's MLflow run. With a slow store it is written after the run."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a trial continues from: its own, or the one of a better trial of the population."""

    folder: str
    """The run folder."""
    round: int


def branch(plan: Plan, config: Config, path: Path, origin: Origin | None) -> tuple[Config, Path]:
    """The configuration and run folder with which a trial of a population starts or continues.

    `config` has the weights that the trial is to have from now on, and `path` is the trial's first run folder. Without
    an origin both are returned as they are. If the origin is the trial's own and has these weights already, the trial
    continues in the origin's folder. Otherwise it continues in a new folder with the origin's checkpoint, whose weights
    follow the origin's schedules and change to the new values at the origin's round.
    """
    if origin is None:
        return config, path
    recorded, _ = run_folder.read_config(Path(origin.folder))
    searched = {name.removeprefix("weights.") for name in plan.space}  # the other weights keep their schedules
    weights = {
        name: schedule(old, getattr(config.weights, name), origin.round) if name in searched else old
        for name, old in vars(recorded.weights).items()
    }
    if weights == vars(recorded.weights) and run_folders.id_of(Path(origin.folder)) == path.name:
        return dataclasses.replace(config, weights=recorded.weights), Path(origin.folder)
    config = build(parse.merge(to_dict(config), {"weights": weights}))
    target = path.with_name(f"{path.name}-{config_module.identity(config)}")
    if not target.exists():
        wait_until_closed(path)
        _wait_for_note(path / "mlflow.json", config)
        _copy(Path(origin.folder), origin.round, config, target, path / "mlflow.json")
    return config, target


def schedule(old: Any, new: float, round_index: int) -> Any:
    """The weight `old`, a number or a schedule, changed to the number `new` from a round on."""
    if new == weight_at(old, round_index):
        return old
    before = old if isinstance(old, list) else [[0, old]]
    return [*([start, value] for start, value in before if start < round_index), [round_index, new]]


def wait_until_closed(path: Path) -> None:
    """Waits until no process uses a run folder: a trial that Ray Tune has stopped may still be closing its files."""
    if path.exists():
        with files.lock(path / ".lock", wait=True):
            pass


def _wait_for_note(note: Path, config: Config) -> None:
    """Waits until the file exists that names the trial's MLflow run, or its key, for NOTE_SECONDS at most."""
    end = time.monotonic() + NOTE_SECONDS
    while config.tracking.uri != tracking.OFF and not note.exists() and time.monotonic() < end:
        time.sleep(0.1)


def _copy(origin: Path, round_index: int, config: Config, target: Path, note: Path) -> None:
    """Makes the run folder `target` with the state of `origin` after a round; `note` names its MLflow run."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    run_folder.open_run(temporary, config)
    name = f"round-{round_index:08d}.safetensors"
    (temporary / "checkpoints").mkdir()
    shutil.copy(origin / "checkpoints" / name, temporary / "checkpoints" / name)
    shutil.copy(origin / "metrics.jsonl", temporary)
    metrics.Log(temporary / "metrics.jsonl", keep_through=round_index).close()
    origin_text = json.dumps({"folder": origin.name, "round": round_index}) + "\n"
    files.write(temporary / run_folders.ORIGIN, origin_text)
    if note.exists():
        shutil.copy(note, temporary)
    temporary.replace(target)
