"""A sweep as plain data: what it searches, with which limits, and where its files are.

The part that determines the trials is in sweep.json, so that `--resume` continues the same sweep or refuses.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import files, resolve
from harness import task as tasks
from harness.config import BOOKKEEPING, Config, flat, normalised, parse
from harness.errors import UserError
from tune import probe, spaces
from tune.objectives import OBJECTIVES
from tune.spaces import Space

SEARCHERS = ("optuna", "random", "grid")
SCHEDULERS = ("asha", "none", "pbt")

NUM_TRIALS = 16
"""The default number of trials. The default of a grid is the number of its points."""

NUM_EVALUATIONS = 8
"""Evaluations of each trial, at equal distances in student updates. The first one is ASHA's first rung."""

DEFAULT_OBJECTIVE, DEFAULT_IMAGES = "agreement", probe.GENERATOR
"""What is maximised, and what the probe is made of, where nothing is given."""


def probe_metric(objective: str) -> str:
    """The name of a data-free objective in the metrics of every trial."""
    return f"evaluation/probe_{objective}"


PROBE_METRIC = probe_metric("agreement")
"""The name of the agreement on the probe in the metrics of every trial."""


@dataclass(frozen=True)
class Plan:
    """A sweep."""

    recipe: str | None
    """The name of the recipe; None if `file` names it."""
    file: dict[str, Any] | None
    """The content of the file given with --config."""
    overrides: dict[str, Any]
    """The path=value arguments, as a nested overlay."""
    space: Space
    """What is searched."""
    objective: str = DEFAULT_OBJECTIVE
    """What is maximised: one of OBJECTIVES on the probe, or the task's metric on real data, which is an oracle."""
    probe_images: str = DEFAULT_IMAGES
    """What the probe is made of: one of `tune.probe.KINDS`."""
    searcher: str = "optuna"
    """One of SEARCHERS."""
    scheduler: str = "asha"
    """One of SCHEDULERS."""
    trials: int = NUM_TRIALS
    """The number of trials."""
    total_rounds: int | None = None
    """The sweep stops after this number of rounds, counted over all trials; None: no limit."""
    minutes: float | None = None
    """The sweep stops after this number of minutes of this invocation; None: no limit."""
    cpus: float = 1.0
    """CPUs of each process of a trial."""
    gpus: float = 0.0
    """GPUs of each process of a trial."""
    parallel: int | None = None
    """The largest number of trials that run at the same time; None: limited by the resources only."""
    folder: Path = Path()
    """The sweep's folder, an absolute path. On a cluster it is on a file system that all nodes share."""
    working_dir: Path = Path()
    """The folder in which the command was given, an absolute path. Relative paths in a configuration start there."""
    address: str | None = None
    """HOST:PORT of an existing Ray cluster, or `auto`; None: Ray is started on this machine."""
    probe: Path | None = None
    """The folder of another sweep whose probe is used, so that both sweeps are comparable; None: a probe is made."""
    parent: str | None = None
    """The id of the sweep's MLflow run; None before it exists, or without MLflow."""

    @property
    def base(self) -> Config:
        """The configuration without a sample: the recipe with the file and the path=value arguments."""
        return resolve.resolve(self.recipe, self.file, self.overrides)

    @property
    def num_processes(self) -> int:
        """Processes of each run of the sweep."""
        return self.base.distributed.world_size or 1

    @property
    def trials_folder(self) -> Path:
        """The folder that holds the run folders of the trials (`tune.run_folders`)."""
        return self.folder / "trials"

    @property
    def probe_file(self) -> Path:
        """The file of the probe."""
        return probe.file_in(self.folder)

    @property
    def default_folder(self) -> Path:
        """The run folder of the default run: the recipe without a sample."""
        return self.folder / "default"

    def of_method(self, method: str) -> Config:
        """The configuration of another method's run whose generator makes a part of the probe."""
        return resolve.resolve(
            self.recipe, self.file, parse.merge(self.overrides, {"method": method, "variant": "paper"})
        )

    @property
    def several_methods(self) -> bool:
        """Whether a new probe has images of several methods' generators."""
        return self.probe is None and self.probe_images.startswith(probe.METHODS_PREFIX)

    @property
    def data_free(self) -> bool:
        """Whether the objective needs no real data."""
        return self.objective in OBJECTIVES

    @property
    def metric(self) -> str:
        """The name of the objective in the metrics of a run."""
        return probe_metric(self.objective) if self.data_free else f"evaluation/student_{self.objective}"

    @property
    def objective_text(self) -> str:
        """The objective as text for reports; it says what the probe is made of and whether real data is needed."""
        if self.data_free:
            of = "" if self.probe_images == probe.GENERATOR else f" of {self.probe_images}"
            return f"{OBJECTIVES[self.objective].text} on the probe{of} (data-free)"
        return f"{self.objective} on real data (ORACLE: no data-free setting has it)"


ResolveArguments = tuple[str | None, dict[str, Any] | None, dict[str, Any]]
"""The arguments of `harness.resolve.resolve`: recipe, content of the file, overrides."""


def make(
    arguments: ResolveArguments,
    output: Path | None,
    space: str,
    trials: int | None,
    searcher: str | None,
    resume: bool = False,
    **options: Any,
) -> Plan:
    """The plan of a command that is given in the current folder; `options` are other fields of Plan.

    An option that is None has its default. A sweep that is resumed keeps its objective and what its probe is made of,
    unless others are given: the defaults may have changed since it began.
    """
    found = spaces.find(space)
    if options.get("probe"):
        if options.get("probe_images"):
            raise UserError("--probe-images is about a new probe, and --probe gives another sweep's: leave one out")
        options["probe_images"] = probe.made_of(options["probe"])
    if searcher is None:
        searcher = "random" if options["scheduler"] == "pbt" else "optuna"
    if trials is None:
        trials = len(spaces.grid(found)) if searcher == "grid" else NUM_TRIALS
    given = {name: value for name, value in options.items() if value is not None}
    plan = Plan(*arguments, found, searcher=searcher, trials=trials, working_dir=Path.cwd(), **given)
    located = _located(plan, output)
    if not resume or (located.objective, located.probe_images) == _recorded(located.folder):
        return located
    objectives = [plan.objective] if "objective" in given else OBJECTIVES
    kinds = [plan.probe_images] if "probe_images" in given else probe.KINDS
    for objective, kind in itertools.product(objectives, kinds):
        other = _located(replace(plan, objective=objective, probe_images=kind), output)
        if (objective, kind) == _recorded(other.folder):
            return other
    return located


def _located(plan: Plan, output: Path | None) -> Plan:
    """The plan with its folder."""
    folder = output or Path("sweeps") / f"{plan.base.recipe}-{identity(plan)}"
    return replace(plan, folder=folder.absolute())


def _recorded(folder: Path) -> tuple[str, str] | None:
    """The objective of the sweep in a folder and what its probe is made of; None if there is no readable sweep."""
    try:
        content = json.loads((folder / "sweep.json").read_text())
        return content["objective"], content.get("probe_images", probe.GENERATOR)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def seeds(text: str | None) -> list[int]:
    """The seeds in a text such as `0-4` or `0,7`; none for None."""
    try:
        found: list[int] = []
        for part in text.split(",") if text else []:
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        found = []
    if text is not None and (not found or len(set(found)) < len(found)):
        raise UserError(f"--retrain {text!r}: expected seeds such as 0-4 or 0,7, each one once")
    return found


def oracle_metric(config: Config) -> str | None:
    """The name of the metric on real data in the metrics of a run; None without data."""
    return f"evaluation/student_{tasks.load(config.task).primary_metric}" if config.data.name != "none" else None


def identity(plan: Plan) -> str:
    """Eight hexadecimal digits of a hash over everything that determines the trials."""
    return hashlib.sha256(json.dumps(_determining(plan), sort_keys=True).encode()).hexdigest()[:8]


def _determining(plan: Plan) -> dict[str, Any]:
    values = flat(normalised(plan.base))
    kept = {path: value for path, value in values.items() if path.partition(".")[0] not in BOOKKEEPING}
    return {
        "config": kept,
        "space": spaces.to_plain(plan.space),
        **{name: getattr(plan, name) for name in ("objective", "searcher", "scheduler", "trials")},
        # Left out where it is that of the sweeps that began before there was a choice: they keep their names.
        **({"probe_images": plan.probe_images} if plan.probe_images != probe.GENERATOR else {}),
        **({"probe": probe.load(probe.file_in(plan.probe)).sha256} if plan.probe else {}),
    }


def record(plan: Plan, resume: bool) -> None:
    """Writes sweep.json into a new folder, or raises UserError unless the existing one describes the same sweep."""
    file = plan.folder / "sweep.json"
    content = {"schema": 1, "metric": plan.metric, "objective_in_words": plan.objective_text, **_determining(plan)}
    if not file.exists():
        if plan.folder.exists() and (found := sorted(p.name for p in plan.folder.iterdir() if p.name[0] != ".")):
            raise UserError(f"{plan.folder} holds other files ({found[0]}): give another --output")
        if resume:
            raise UserError(f"--resume: there is no sweep in {plan.folder}: leave --resume out to start it")
        files.write(file, json.dumps(content, indent=1) + "\n")
        return
    try:
        recorded = json.loads(file.read_text())
        if not isinstance(recorded, dict):
            raise ValueError(f"{type(recorded).__name__} instead of an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or give another --output") from None
    given = json.loads(json.dumps(content))
    if differing := [key for key in given if recorded.get(key) != given[key]]:
        key = differing[0]
        raise UserError(f"{plan.folder} belongs to another sweep ({_change(key, recorded.get(key), given[key])}): "
                        "give another --output")  # fmt: skip
    if not resume:
        raise UserError(f"{plan.folder} holds this sweep already: --resume continues it, or give another --output")


def _change(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
        return _change(inner, old.get(inner), new.get(inner))
    return f"{key} is {old!r} in the folder, {new!r} in this command"
