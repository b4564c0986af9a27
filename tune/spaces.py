"""Search spaces: {dotted path of the configuration: distribution}. Three are built in; a YAML file can hold another.

weights.adversarial: {log_uniform: [0.1, 10]}
student_steps: {choice: [1, 2, 5, 10]}
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from harness.config import Config, build, is_bookkeeping, parse, to_dict
from harness.errors import UserError, nearest

Kind = Literal["uniform", "log_uniform", "integer", "log_integer", "choice"]

KINDS = get_args(Kind)

GRID_POINTS = 3
"""Points of a grid on a distribution over numbers, including both ends."""

FIXED = {
    "schema": "it is the version of the file format",
    "task": "a sweep belongs to one recipe",
    "recipe": "a sweep belongs to one recipe",
    "method": "other settings depend on it; run a sweep for each method",
    "variant": "other settings depend on it; run a sweep for each variant",
    "seed": "the best of several seeds is chance; --retrain repeats the best configuration with several seeds",
    "rounds": "it is the length of a trial; give rounds=N",
    "classes": "all trials are evaluated on the same probe",
    "precision": "all trials use the same precision",
    "teacher": "all trials have the same teacher",
    "teach": "all trials have the same teacher",
    "input": "all trials are evaluated on the same probe",
    "data": "all trials are evaluated on the same data",
}
"""Paths and groups of fields that a space cannot contain, and why."""


@dataclass(frozen=True)
class Distribution:
    """The distribution of the values of one path."""

    kind: Kind
    """`uniform` and `log_uniform` numbers, `integer` and `log_integer` whole numbers, or a `choice` of values."""
    values: tuple[Any, ...]
    """(low, high), both included, or the choices."""

    def grid(self) -> list[Any]:
        """The choices, or GRID_POINTS numbers from low to high at equal distances, logarithmic ones on that scale."""
        if self.kind == "choice":
            return list(self.values)
        low, high = (math.log(value) if self.kind.startswith("log_") else value for value in self.values)
        points = [low + (high - low) * index / (GRID_POINTS - 1) for index in range(GRID_POINTS)]
        if self.kind.startswith("log_"):
            points = [math.exp(point) for point in points]
        points[0], points[-1] = self.values
        return sorted({round(point) for point in points}) if self.kind.endswith("integer") else points


Space = dict[str, Distribution]


def _log(low: float, high: float) -> Distribution:
    return Distribution("log_uniform", (low, high))


def _loss_weights() -> Space:
    """The weights of the generator's loss terms, around the values of the literature (docs/method.md)."""
    return {
        "weights.adversarial": _log(0.1, 10.0),
        "weights.batch_norm": _log(0.01, 10.0),
        "weights.one_hot": _log(0.001, 1.0),
        "weights.class_balance": _log(0.01, 10.0),
    }


def _turns() -> Space:
    """The student turns in a round, and both learning rates."""
    return {
        "student_steps": Distribution("choice", (1, 2, 5, 10)),
        "student.lr": _log(0.01, 0.5),
        "generator.lr": _log(1e-4, 1e-2),
    }


def _everything() -> Space:
    """Both spaces, the forms of the losses, and the size of the latent vector."""
    others: Space = {
        "discrepancy": Distribution("choice", ("l1", "mse", "kl", "js")),
        "batch_norm_form": Distribution("choice", ("norm", "kl")),
        "generator.latent_size": Distribution("choice", (32, 64, 128, 256)),
    }
    return {**_loss_weights(), **_turns(), **others}


SPACES = {"loss_weights": _loss_weights, "turns": _turns, "everything": _everything}


def find(name: str) -> Space:
    """The built-in space of that name, or the one in that YAML file; UserError if there is none or it is not valid."""
    if name in SPACES:
        return SPACES[name]()
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"--space {name!r}: no such space{nearest(name, SPACES)}: give one of {', '.join(SPACES)}, or a YAML file"
        )
    content = _read(path)
    return {str(key): _distribution(f"--space {path}: {key}", value) for key, value in content.items()}


def _read(path: Path) -> Mapping[Any, Any]:
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)  # reads 1e-3 as a number, unlike PyYAML
    except OSError as error:
        raise UserError(f"--space {path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the errors of yaml and of OmegaConf have no common base class
        raise UserError(f"--space {path}: not a readable YAML file: {str(error).strip().splitlines()[0]}") from None
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"--space {path}: expected lines of `path: {{distribution: values}}`")
    return content


def _distribution(name: str, content: object) -> Distribution:
    """{kind: values} as a Distribution; UserError if it is not one."""
    if not isinstance(content, Mapping) or len(content) != 1:
        raise UserError(f"{name}: {content!r}: expected one of {', '.join(KINDS)}, as {{log_uniform: [0.1, 10]}}")
    ((kind, values),) = content.items()
    if kind not in KINDS:
        raise UserError(f"{name}: no such distribution as {kind!r}{nearest(str(kind), KINDS)}")
    if kind == "choice":
        plain = (type(None), bool, int, float, str)
        if not isinstance(values, list) or len(values) < 2 or not all(isinstance(value, plain) for value in values):
            raise UserError(f"{name}: choice {values!r}: expected a list of at least two numbers, texts or booleans")
        return Distribution(kind, tuple(values))
    number = int if kind.endswith("integer") else (int, float)
    if not (isinstance(values, list) and len(values) == 2
            and all(isinstance(value, number) and not isinstance(value, bool) for value in values)):  # fmt: skip
        what = "whole numbers" if kind.endswith("integer") else "numbers"
        raise UserError(f"{name}: {kind} {values!r}: expected [low, high], two {what}")
    low, high = values
    if not low < high:
        raise UserError(f"{name}: {kind} {values!r}: expected [low, high] with low below high")
    if kind.startswith("log_") and low <= 0:
        raise UserError(f"{name}: {kind} {values!r}: a logarithmic scale needs a low end above 0; or use uniform")
    return Distribution(kind, (low, high) if kind.endswith("integer") else (float(low), float(high)))


def check(space: Space, config: Config) -> None:
    """Raises UserError for a path that is unknown or cannot be searched, and for values that do not fit the field."""
    known = list(parse.paths(Config))
    base = to_dict(config)
    for path, distribution in space.items():
        if path not in known:
            raise UserError(f"space: unknown path {path!r}{nearest(path, known)}")
        group = path.partition(".")[0]
        if reason := FIXED.get(path, FIXED.get(group)):
            raise UserError(f"space: {path} cannot be searched: {reason}")
        if is_bookkeeping(path):
            raise UserError(f"space: {path} cannot be searched: it does not change the result of a run")
        for value in _samples(distribution):
            try:
                build(parse.merge(base, parse.nest({path: value})))
            except UserError as error:
                raise UserError(f"space: {path}: {distribution.kind} does not fit the field: {error}") from None


def _samples(distribution: Distribution) -> list[Any]:
    """Values that show whether a distribution fits its field: the choices, or both ends and one value between them."""
    if distribution.kind == "choice":
        return list(distribution.values)
    low, high = distribution.values
    return [low, high] if distribution.kind.endswith("integer") else [low, high, (2 * low + high) / 3]


def grid(space: Space) -> list[dict[str, Any]]:
    """All combinations of the grid points of each path."""
    axes = [distribution.grid() for distribution in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def to_plain(space: Space) -> dict[str, dict[str, list[Any]]]:
    """The space in the form of the YAML file."""
    return {path: {distribution.kind: list(distribution.values)} for path, distribution in space.items()}
