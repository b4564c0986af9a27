"""Processes, arithmetic, MLflow and checkpoints of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed's ZeRO shards: 0 nothing, 1 moments, 2 gradients too, 3 weights too."""

    generator: int = 1
    """Stage of the generator."""
    student: int = 2
    """Stage of the student."""
    offload: bool = False
    """Keep sharded tensors in the host's memory."""


@dataclass(frozen=True)
class Distributed:
    """The processes of a run; no field here changes its result."""

    strategy: Literal["single", "ddp", "fsdp", "deepspeed"] = "ddp"
    """Replicated networks (`ddp`, on one process too), sharded ones, or `single` to insist on one process."""
    world_size: int | None = None
    """Expected number of processes; another number is an error; null: as many as the launcher starts."""
    min_world_size: int | None = None
    """Least number of processes with which an elastic run continues; null: `world_size`."""
    timeout: float = 600.0
    """Seconds until a process that does not respond is treated as lost."""
    shard_teacher: bool = False
    """With `fsdp`, shard the frozen teacher too; for a teacher that is too large for each device."""
    zero: Zero = field(default_factory=Zero)


@dataclass(frozen=True)
class Speed:
    """Speed options (docs/performance.md); null: the default for the device."""

    compile: bool | None = None
    """Compile the networks and the moments inside the teacher with torch.compile, on one process; null: no. Takes
    minutes at each start. The result is not bit-identical to that of a run without it, and dropout draws differ."""
    cuda_graphs: bool | None = None
    """On a GPU, run compiled networks as CUDA graphs: fewer launches, more memory; null: no."""
    tf32: bool | None = None
    """On a GPU, multiply fp32 numbers with 10 bits of mantissa (TF32); null: torch's default, only in convolutions.
    With it, 1 and N processes differ by more than fp32 rounding."""


@dataclass(frozen=True)
class Tracking:
    """Records of the run outside its folder."""

    uri: str = "sqlite:///mlflow.db"
    """An MLflow tracking URI; "none": only the run folder."""
    experiment: str = "ddad"
    """The MLflow experiment."""
    parent: str | None = None
    """The parent MLflow run, such as that of a sweep; null: none."""
    model: bool = True
    """Log the student as an MLflow model at the end."""


@dataclass(frozen=True)
class Checkpoint:
    """Intervals between checkpoints: by rounds or by time, whichever comes first."""

    every: int = 50
    """Rounds between checkpoints."""
    minutes: float | None = 5.0
    """Minutes after which a checkpoint is written at the end of the round, or of the turn if the round takes more than
    seconds; null: only by rounds."""
    keep: int = 2
    """Number of latest checkpoints that are kept."""
