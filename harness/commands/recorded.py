"""A run again from its folder, on one process of this machine: to score it, or to generate images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from harness import config as config_module
from harness.config import FRESH, MEMORY, Config, Distributed
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.methods import find
from harness.networks import own_file, roles, sources
from harness.networks.given import Given, take
from harness.run import folder
from harness.run import given as given_files
from harness.training import checkpoint
from harness.training.machine import Machine, Networks


@dataclass(frozen=True)
class Recorded:
    """A run as its folder has it."""

    run: Path
    config: Config
    """With absolute paths, and the values that are asked for now."""
    given: Given
    """Modules that were given from Python, and are again."""
    missing: list[str]
    """What is wrong with the files that its teacher needs."""

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher, and all that it needs."""
        return find(self.config.method, self.config.variant)[0].has_teacher and not self.missing

    def teacher(self, say: Callable[[str], None] = lambda line: None) -> nn.Module:
        """The teacher with its weights."""
        return roles.teacher(self.config, say, self.given.source("teacher"))

    def networks(self, runtime: Runtime, advice: str) -> Networks:
        """The networks of the last checkpoint, and its pool; UserError with some advice where there is none."""
        turns = find(self.config.method, self.config.variant)[0].turns(self.config)
        machine = Machine(self.config, runtime, turns, self.teacher(), folder.structure(self.run), self.given)
        checkpoints = self.run / "checkpoints"
        if checkpoint.restore(checkpoints, machine.players, take=machine.sources.take) is None:
            raise UserError(f"{checkpoints} is empty, it held the generator: {advice}")
        return machine.networks()


def read(run: Path, over: Overlay, modules: Mapping[str, nn.Module | None]) -> Recorded:
    """The run of a folder; `over` changes its configuration, `modules` are those that it was given from Python."""
    config, records = folder.read_config(run)
    config = dataclasses.replace(config, distributed=Distributed())
    config = config_module.build(merge(config_module.to_dict(config), over))
    again = {}
    for role, module in modules.items():
        if module is not None:
            again[role] = take(role, given_files.rebuilt(run, role, module, config, records), config)
    if config.teacher.checkpoint == MEMORY:  # the run folder may have moved
        record = records.get("teacher.checkpoint", {})
        records["teacher.checkpoint"] = {**record, "path": str(given_files.copy_of(run, "teacher").absolute())}
    needed = {path: record for path, record in records.items() if path != "student.start"}
    missing = [problem for path, record in needed.items() if (problem := sources.change(path, record))]
    if config.teacher.network.startswith(f"{MEMORY}:") and "teacher" not in again:
        missing.append(f"teacher.network={config.teacher.network} is a module that has to be given again, from Python")
    return Recorded(run, _with_recorded_paths(config, records), Given(**again), missing)


def _with_recorded_paths(settings: Config, records: Mapping[str, Mapping[str, Any]]) -> Config:
    """The settings with absolute paths: those in config.yaml are relative to the folder where the run was started."""
    names = {
        role: own_file.located(getattr(settings, role).network, records.get(f"{role}.network"))
        for role in ("teacher", "student")
    }
    record = records.get("teacher.checkpoint")
    checkpoint_file = sources.recorded(record) if record else settings.teacher.checkpoint
    teacher = dataclasses.replace(settings.teacher, network=names["teacher"], checkpoint=checkpoint_file)
    # The weights are the run's: those that it started from are of no concern any more.
    student = dataclasses.replace(settings.student, network=names["student"], start=FRESH, blocks=None)
    generator = settings.generator
    if embeddings := records.get("generator.embeddings"):
        generator = dataclasses.replace(generator, embeddings=embeddings["path"])
    return dataclasses.replace(settings, teacher=teacher, student=student, generator=generator)
