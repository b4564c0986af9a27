"""A run as plain data: frozen dataclasses, a docstring under every field.

A record of these fields is enough to run it again. Settings are given as `path=value`, with the same strict checks of
paths and types for the command line, YAML files, sweeps and tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from harness.config.images import Data, Input, Inversion, Replay, Teach
from harness.config.networks import Generator, Student, Teacher
from harness.config.operation import Checkpoint, Distributed, Speed, Tracking
from harness.config.weights import Weights

SCHEMA = 1
"""Increased only when the meaning of a recorded field changes; a new field has its default in old records."""


@dataclass(frozen=True)
class Config:
    """One run."""

    schema: int = SCHEMA
    """Version of the meaning of these fields."""
    task: str = ""
    """A folder of `tasks/`."""
    recipe: str = ""
    """The recipe that the values come from."""
    method: str = "ddad"
    """One of `harness.methods.METHODS`."""
    variant: str = "paper"
    """A named set of the method's settings; published figures keep their variant."""
    seed: int = 0
    """Every random draw is a function of (seed, round, turn, index in the global batch)."""
    rounds: int = 1000
    """Rounds of `student_steps` student turns and `generator_steps` generator turns."""
    batch_size: int = 128
    """Images in a turn, over all processes."""
    student_steps: int = 5
    """Student turns a round."""
    generator_steps: int = 1
    """Generator turns a round, each on latents of its own unless `shared_latents`."""
    shared_latents: bool = False
    """All turns of a round have the same latents, and the generator's turns come first: one batch of images is improved
    by `generator_steps` updates before the student has it."""
    classes: int = 0
    """Number of classes K."""
    weights: Weights = field(default_factory=Weights)
    batch_norm_form: Literal["norm", "kl"] = "norm"
    """Form of the batch-norm term: DeepInversion's norms or DFQ's KL divergence of Gaussians."""
    discrepancy: str = "l1"
    """D(t, s), the discrepancy that the generator maximises; a name in `harness.algorithm.losses.DISCREPANCIES`."""
    student_discrepancy: str | None = None
    """The discrepancy that the student minimises; null: the same."""
    adversarial_transform: Literal["identity", "log1p"] = "identity"
    """A, applied to the mean discrepancy in the generator's turn."""
    adversarial_where: Literal["all", "agreed"] = "all"
    """The predictions in the generator's discrepancy; `agreed`: those with the same class in teacher and student."""
    adversarial_after: float = 0.0
    """Share of the rounds before the generator's adversarial term is switched on."""
    temperature: float = 1.0
    """Temperature of the `kl` and `js` discrepancies."""
    student_temperature: float | None = None
    """Temperature of the discrepancy that the student minimises; null: the same."""
    teacher: Teacher = field(default_factory=Teacher)
    student: Student = field(default_factory=Student)
    generator: Generator = field(default_factory=Generator)
    replay: Replay = field(default_factory=Replay)
    inversion: Inversion = field(default_factory=Inversion)
    input: Input = field(default_factory=Input)
    data: Data = field(default_factory=Data)
    teach: Teach = field(default_factory=Teach)
    micro_batches: int = 1
    """Parts of a batch that a turn processes one after the other before its update; batch statistics are per part."""
    sync_batch_norm: bool = True
    """Trained networks normalise by the global batch; false: by each process's part, so N processes differ from one."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Arithmetic of the networks: bf16 is autocast over fp32 weights, fp64 is for tests of equality."""
    speed: Speed = field(default_factory=Speed)
    distributed: Distributed = field(default_factory=Distributed)
    tracking: Tracking = field(default_factory=Tracking)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    pictures: bool = True
    """Write generated images to the run folder and to MLflow."""
    log_every: int = 10
    """Rounds between two reports."""
    log_seconds: float | None = 30.0
    """Seconds after which a report follows at the end of the round, whichever comes first; null: only by rounds."""
    evaluate_every: int = 0
    """Rounds between two evaluations during the run, for a curve; 0: only at the end."""
    max_minutes: float | None = None
    """Minutes after which this invocation ends early, with a checkpoint; null: no limit."""


def image_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of an input image."""
    return (num_channels(config), *sides(config.input.size))


def sides(size: int | list[int]) -> tuple[int, int]:
    """(H, W) of a size: a side, or [height, width]."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def num_channels(config: Config) -> int:
    """C of an input image: 1 for `teacher.channels=gray`, else 3."""
    return 1 if config.teacher.channels == "gray" else 3
