"""Copies of modules that were given from Python, in the run folder, and whether a module is the one of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import nn

from harness import files
from harness.config import FRESH, MEMORY, UNTRAINED, Config
from harness.errors import UserError
from harness.networks import roles, weights
from harness.networks.given import Given, copied, logits, same, take

FOLDER = "given"
"""Folder of the copies in the run folder."""

ROLES = {"teacher": "teacher.checkpoint", "student": "student.start"}
"""Role of a module -> the record of its weights in config.yaml."""


def copy_of(run: Path, role: str) -> Path:
    """The file of the weights that a module was given with."""
    return run / FOLDER / f"{role}.safetensors"


def records(run: Path, given: Given) -> dict[str, dict[str, Any]]:
    """What config.yaml holds of each module: {path, size, sha256} of the copy, and `logits`."""
    return {
        ROLES[role]: {
            "path": str(copy_of(run, role).absolute()),
            "size": len(weights.serialise(taken.module)),
            "sha256": taken.sha256,
            "logits": taken.logits,
        }
        for role, taken in given.modules.items()
    }


def keep(run: Path, given: Given) -> None:
    """Writes the copies that are not there yet."""
    for role, taken in given.modules.items():
        if not copy_of(run, role).exists():
            files.write(copy_of(run, role), weights.serialise(taken.module))


def check(run: Path, role: str, record: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """UserError unless the module of `record` is that of the `old` one in config.yaml."""
    where = f"{run}: the {role} that was given is not the one this run began with: "
    if record["sha256"] != old.get("sha256"):
        raise UserError(
            f"{where}it has other weights, and those are in {copy_of(run, role)}: load them into it, or give another "
            "output"
        )
    if not same(record["logits"], old["logits"]):
        raise UserError(f"{where}it has the same weights and other logits: give the same network, or another output")


def read(run: Path, config: Config, given: Given) -> dict[str, bytes]:
    """The copies, by role, of modules that a configuration has and a caller did not give again."""
    wanted = {"teacher": config.teacher.checkpoint, "student": config.student.start}
    found = {}
    for role in (role for role, value in wanted.items() if value == MEMORY and role not in given.modules):
        if not copy_of(run, role).exists():
            raise UserError(
                f"{ROLES[role]}={MEMORY}: the {role} is a module that is given from Python (docs/from-python.md), and "
                f"{run} has no copy of its weights: give it again"
            )
        found[role] = copy_of(run, role).read_bytes()
    return found


def restore(config: Config, copies: Mapping[str, bytes], given: Given) -> Given:
    """The modules of a run: those that were given, and those rebuilt by their names, with the weights of their copies.

    Raises UserError for a network whose name does not rebuild it.
    """
    modules = given.modules
    named = dataclasses.replace(
        config,
        teacher=dataclasses.replace(config.teacher, checkpoint=UNTRAINED),
        student=dataclasses.replace(config.student, start=FRESH),
    )
    for role, content in copies.items():
        module = roles.teacher(named) if role == "teacher" else roles.student(named)
        module.load_state_dict(load(content))
        modules[role] = take(role, module, config)
    return Given(**modules)


def rebuilt(run: Path, role: str, module: nn.Module, config: Config, known: Mapping[str, Any]) -> nn.Module:
    """A copy of a module with the weights that the run keeps of it; UserError where it is not the module of the run.

    `known`: the records in config.yaml.
    """
    if "logits" not in known.get(ROLES[role], {}):
        raise UserError(f"{run}: its {role} is built by its name: leave the module out")
    found = copied(f"the {role} that was given", module)
    weights.load(found, copy_of(run, role), f"the {role} that was given")
    if not same(logits(found, config), known[ROLES[role]]["logits"]):
        raise UserError(f"{run}: the {role} that was given has other logits than the run's: give the same network")
    return found
