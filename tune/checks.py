"""What is refused before a sweep starts: options that do not fit together, the space or the recipe."""

from __future__ import annotations

from typing import Any

from harness import task as tasks
from harness.config import Config
from harness.errors import UserError, nearest
from harness.methods import METHODS
from tune import probe, spaces
from tune.objectives import OBJECTIVES
from tune.plan import DEFAULT_OBJECTIVE, SCHEDULERS, SEARCHERS, Plan


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
    _one_of("--probe-images", plan.probe_images, probe.KINDS)
    if plan.several_methods:
        for method in probe.METHODS_OF_PROBE:
            plan.of_method(method)
    spaces.check(plan.space, config)
    if both := sorted(plan.space.keys() & flat_keys(plan.overrides)):
        raise UserError(f"{both[0]} is given as an argument and is also in the space: remove one of them")
    for name in ("trials", "total_rounds", "minutes", "parallel", "cpus"):
        value = getattr(plan, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: expected a number above 0")
    if plan.probe:
        probe.check(plan.probe, config, plan.objective)
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
    _one_of("--objective", objective, (*OBJECTIVES, primary))
    if objective == primary and config.data.name == "none":
        raise UserError(
            f"--objective {objective} needs real data, and data.name=none: use --objective {DEFAULT_OBJECTIVE}"
        )


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
