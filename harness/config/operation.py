"""How a run is carried out and recorded: processes, arithmetic, MLflow, checkpoints."""

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
    """Keep what is sharded in the host's memory."""


@dataclass(frozen=True)
class Distributed:
    """How the run is spread over processes; no field here changes its result."""

    strategy: Literal["single", "ddp", "fsdp", "deepspeed"] = "ddp"
    """Replicated networks (`ddp`, on one process too), sharded ones, or `single` to insist on one process."""
    world_size: int | None = None
    """Number of processes asked for: a run that finds another stops; null takes what the launcher gives."""
    min_world_size: int | None = None
    """Fewest processes that an elastic run goes on with; null: `world_size`."""
    timeout: float = 600.0
    """Seconds until a process that does not answer is given up."""
    shard_teacher: bool = False
    """Under `fsdp`, shard the frozen teacher too, where it is too large to be on every device."""
    zero: Zero = field(default_factory=Zero)


@dataclass(frozen=True)
class Speed:
    """How the arithmetic is carried out (docs/performance.md); null leaves the choice to the device."""

    compile: bool | None = None
    """Compile the networks and the moments inside the teacher with torch.compile, on one process; null: no. Minutes at
    the start of each call. Gives up equality to the bit with a run that does not compile, and draws other dropout."""
    cuda_graphs: bool | None = None
    """On a GPU, replay what is compiled as CUDA graphs: fewer launches, more memory; null: no."""
    tf32: bool | None = None
    """On a GPU, multiply fp32 numbers with 10 bits of mantissa; null: torch's choice, only in convolutions. Gives up
    that 1 process equals N to rounding in fp32."""


@dataclass(frozen=True)
class Tracking:
    """Where the experiment is recorded beside its run folder."""

    uri: str = "sqlite:///mlflow.db"
    """An MLflow tracking URI; "none" records only in the run folder."""
    experiment: str = "ddad"
    """The MLflow experiment."""
    parent: str | None = None
    """The MLflow run that this one is a child of, such as a sweep's; null: none."""
    model: bool = True
    """Log the student as an MLflow model at the end."""


@dataclass(frozen=True)
class Checkpoint:
    """How often the state of a run is saved: by rounds or by time, whichever comes first."""

    every: int = 50
    """Rounds between checkpoints."""
    minutes: float | None = 5.0
    """Minutes after which a checkpoint is written at the end of the round, or of the turn where that takes more than
    seconds; null: by rounds alone."""
    keep: int = 2
    """How many of the latest are kept."""
