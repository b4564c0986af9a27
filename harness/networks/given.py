"""Modules in memory, given from Python in place of a network's name and a file of weights."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness import methods
from harness import task as tasks
from harness.config import FRESH, MEMORY, PRUNED, Config, image_shape
from harness.errors import UserError, one_line
from harness.networks import build, fit, weights
from harness.networks.layers import evaluating

NUM_LOGITS = 16
"""Logits of a module that are recorded."""

TOLERANCE = 1e-3
"""Largest difference from recorded logits, as a share of the largest (at least 1): rounding on other hardware."""


@dataclass(frozen=True)
class Taken:
    """A copy of a module, in fp32 on the CPU."""

    module: nn.Module
    sha256: str
    """Of its weights as safetensors."""
    logits: list[float]
    """Some of its logits for two images of noise: the same weights in other code give others."""


@dataclass(frozen=True)
class Given:
    """The modules of a run that were given from Python."""

    teacher: Taken | None = None
    student: Taken | None = None

    @property
    def modules(self) -> dict[str, Taken]:
        """Those that there are, by role."""
        found = {"teacher": self.teacher, "student": self.student}
        return {role: taken for role, taken in found.items() if taken}

    def source(self, role: str) -> nn.Module | None:
        """The module of a role; None where its network is built by name."""
        taken = self.modules.get(role)
        return taken.module if taken else None

    def student_source(self, config: Config) -> nn.Module | None:
        """The module from which the student is copied: its own, or the teacher's where the student is pruned."""
        return self.source("teacher" if config.student.network == PRUNED else "student")


NOTHING = Given()


def take(role: str, module: nn.Module, config: Config) -> Taken:
    """A copy of a module that maps images of the run to its logits; UserError where it does not, or cannot be copied.

    Wrappers of torch.compile and of data parallelism come off.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"{role}={module!r}: expected a torch.nn.Module")
    name = f"the {role} that was given ({type(_unwrapped(module)).__name__})"
    taken = copied(name, module)
    _check_values(name, taken)
    fit.check_fit(name, taken, config)
    return Taken(taken, hashlib.sha256(weights.serialise(taken)).hexdigest(), logits(taken, config))


def copied(name: str, module: nn.Module) -> nn.Module:
    """A copy of a module without torch's wrappers, in fp32 on the CPU; `name` stands for it in messages."""
    try:
        found = copy.deepcopy(_unwrapped(module)).cpu().float()
        weights.serialise(found)
    except Exception as error:  # modules may hold anything; lazy ones have no weights yet
        raise UserError(f"{name} cannot be copied: {type(error).__name__}: {one_line(error)}") from error
    return found


def logits(module: nn.Module, config: Config) -> list[float]:
    """Some of a module's logits for two images of noise."""
    x = torch.randn(2, *image_shape(config), generator=torch.Generator().manual_seed(0))
    with evaluating([module]):
        found = module(x).flatten()
    chosen = torch.arange(NUM_LOGITS) * len(found) // NUM_LOGITS
    values: list[float] = found[chosen].double().tolist()
    return values


def same(found: list[float], recorded: list[float]) -> bool:
    """Whether two lists of logits are alike but for rounding."""
    allowed = TOLERANCE * max(1.0, *map(abs, recorded))
    return len(found) == len(recorded) and all(abs(a - b) <= allowed for a, b in zip(found, recorded, strict=True))


def complete(config: Config, given: Given, warn: Callable[[str], None]) -> Config:
    """The configuration of a run with these modules: their weights are "memory", their names "memory:CLASS".

    A network that the configuration names keeps its name where it is the module, with its weights and logits;
    else `warn` gets a line. Raises UserError where the configuration leaves a module no use.
    """
    if given.teacher:
        if not methods.find(config.method, config.variant)[0].has_teacher:
            raise UserError(f"a teacher was given, and method={config.method} has none: leave it out")
        named = _named(config, "teacher", given.teacher, warn)
        teacher = dataclasses.replace(config.teacher, checkpoint=MEMORY, entry=None, **named)
        config = dataclasses.replace(config, teacher=teacher)
    if given.student:
        if config.student.network == PRUNED:
            raise UserError(f"a student was given, and student.network={PRUNED}: leave one of them out")
        if config.student.start not in (FRESH, MEMORY):
            raise UserError(f"a student was given, and student.start={config.student.start}: leave one of them out")
        named = _named(config, "student", given.student, warn)
        student = dataclasses.replace(config.student, start=MEMORY, **named)
        config = dataclasses.replace(config, student=student)
    return config


def _named(config: Config, role: str, taken: Taken, warn: Callable[[str], None]) -> dict[str, Any]:
    """The fields `network` and `arguments` of a module."""
    spec, label = getattr(config, role), f"{MEMORY}:{type(taken.module).__name__}"
    if spec.network and not spec.network.startswith(f"{MEMORY}:"):
        task, channels = tasks.load(config.task), image_shape(config)[0]
        network = build.network(task, spec.network, config.classes, channels, spec.arguments)
        try:
            network.load_state_dict(taken.module.state_dict())
            if same(logits(network, config), taken.logits):
                return {}
        except RuntimeError:  # other names or shapes
            pass
        warn(f"{role}.network={spec.network} is not the module that was given, which is recorded as {label}")
    return {"network": label, "arguments": {}}


def _unwrapped(module: nn.Module) -> nn.Module:
    """A module without torch's wrappers."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = module.module if isinstance(module, parallel) else getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _check_values(name: str, module: nn.Module) -> None:
    """UserError for values that no trained network has. Buffers may hold infinities, such as masks of attention."""
    parameters = {key for key, _ in module.named_parameters()}
    for key, value in module.state_dict().items():
        learnt = key in parameters or key.rpartition(".")[2] in ("running_mean", "running_var")
        if problem := weights.problem(key, value, torch.zeros_like(value) if learnt else value):
            raise UserError(f"{name} is refused: {key} {problem}")
