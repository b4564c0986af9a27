"""A sweep as plain data: what it searches, with which limits, and where its files are.

The part that determines the trials is in sweep.json, so that `--resume` continues the same sweep or refuses.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import files, resolve
from harness import task as tasks
from harness.config import BOOKKEEPING, Config, flat, normalised
from harness.errors import UserError, nearest
from harness.methods import METHODS
from tune import probe, spaces
from tune.spaces import Space

SEARCHERS = ("optuna", "random", "grid")
SCHEDULERS = ("asha", "none", "pbt")

NUM_TRIALS = 16
"""The default number of trials. The default of a grid is the number of its points."""

NUM_EVALUATIONS = 8
"""Evaluations of each trial, at equal distances in student updates. The first one is ASHA's first rung."""

PROBE_METRIC = "evaluation/probe_agreement"
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
    objective: str = "agreement"
    """What is maximised: `agreement` on the probe, or the task's metric on real data, which is an oracle."""
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

    @property
    def metric(self) -> str:
        """The name of the objective in the metrics of a run."""
        return PROBE_METRIC if self.objective == "agreement" else f"evaluation/student_{self.objective}"

    @property
    def objective_text(self) -> str:
        """The objective as text for reports; it says whether the objective needs real data."""
        if self.objective == "agreement":
            return "agreement on the probe (data-free)"
        return f"{self.objective} on real data (ORACLE: no data-free setting has it)"


ResolveArguments = tuple[str | None, dict[str, Any] | None, dict[str, Any]]
"""The arguments of `harness.resolve.resolve`: recipe, content of the file, overrides."""


def make(
    arguments: ResolveArguments,
    output: Path | None,
    space: str,
    trials: int | None,
    searcher: str | None,
    **options: Any,
) -> Plan:
    """The plan of a command that is given in the current folder; `options` are other fields of Plan."""
    found = spaces.find(space)
    if searcher is None:
        searcher = "random" if options["scheduler"] == "pbt" else "optuna"
    if trials is None:
        trials = len(spaces.grid(found)) if searcher == "grid" else NUM_TRIALS
    plan = Plan(*arguments, found, searcher=searcher, trials=trials, working_dir=Path.cwd(), **options)
    folder = output or Path("sweeps") / f"{plan.base.recipe}-{identity(plan)}"
    return replace(plan, folder=folder.absolute())


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


def check(plan: Plan) -> Config:
    """Returns the configuration without a sample; raises UserError if parts of the plan do not fit together."""
    config = plan.base
    _one_of("--searcher", plan.searcher, SEARCHERS)
    _one_of("--scheduler", plan.scheduler, SCHEDULERS)
    if not METHODS[config.method].data_free or not METHODS[config.method].has_teacher:
        raise UserError(f"method={config.method} generates no images for a probe: sweep a data-free method")
    if config.max_minutes is not None:
        raise UserError(f"max_minutes={config.max_minutes:g} would end each run early: limit the sweep with --minutes")
    _check_objective(plan.objective, config)
    spaces.check(plan.space, config)
    if both := sorted(plan.space.keys() & flat_keys(plan.overrides)):
        raise UserError(f"{both[0]} is given as an argument and is also in the space: remove one of them")
    for name in ("trials", "total_rounds", "minutes", "parallel", "cpus"):
        value = getattr(plan, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")
    if plan.probe:
        probe.check(plan.probe, config)
    if not (0 <= plan.gpus < 1 or (plan.gpus.is_integer() and plan.gpus > 0)):
        raise UserError(f"--gpus {plan.gpus:g}: expected a part of one GPU, such as 0.5, or a whole number")
    if plan.num_processes > 1 and plan.gpus % 1:
        raise UserError(
            f"--gpus {plan.gpus:g}: each of the {plan.num_processes} processes of a trial needs a whole GPU"
        )
    if plan.scheduler == "pbt":
        _check_population(plan, config)
    if plan.searcher == "grid" and plan.trials != (points := len(spaces.grid(plan.space))):
        raise UserError(f"--trials {plan.trials}: the grid of this space has {points} points: leave --trials out")
    return config


def _one_of(option: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UserError(f"{option} {name!r}: expected one of {', '.join(known)}{nearest(name, known)}")


def _check_objective(objective: str, config: Config) -> None:
    primary = tasks.load(config.task).primary_metric
    _one_of("--objective", objective, ("agreement", primary))
    if objective == primary and config.data.name == "none":
        raise UserError(f"--objective {objective} needs real data, and data.name=none: use --objective agreement")


def _check_population(plan: Plan, config: Config) -> None:
    if others := [path for path in plan.space if not path.startswith("weights.")]:
        raise UserError(f"--scheduler pbt changes values during a run; only weights.* can change, not {others[0]}")
    if choices := [path for path, one in plan.space.items() if one.kind == "choice"]:
        raise UserError(f"--scheduler pbt multiplies weights, but {choices[0]} is a choice: give it a range")
    if plan.searcher != "random":
        raise UserError(f"--scheduler pbt needs --searcher random, not {plan.searcher}")
    if plan.parallel:
        raise UserError("--parallel does not work with --scheduler pbt: limit the running trials with --cpus or --gpus")
    if plan.trials < 2:
        raise UserError(f"--scheduler pbt --trials {plan.trials}: a population needs at least 2 trials")


def flat_keys(overlay: dict[str, Any]) -> set[str]:
    """Every dotted path that a nested overlay sets."""
    return {
        f"{key}{'.' + rest if rest else ''}"
        for key, value in overlay.items()
        for rest in (flat_keys(value) if isinstance(value, dict) else {""})
    }


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
