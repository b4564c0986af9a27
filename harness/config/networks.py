"""The three networks of a run, and how two of them are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from harness.config.weights import Weight

UNTRAINED = "untrained"
"""The value of `teacher.checkpoint` that asks for random weights."""

PRUNED = "pruned"
"""The value of `student.network` that asks for the teacher with a part of it removed."""

FRESH, FROM_TEACHER = "fresh", "teacher"
"""The values of `student.start` that name no file."""


@dataclass(frozen=True)
class Optimizer:
    """An optimiser, its learning-rate schedule over the player's own updates, and its clipping."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Stochastic gradient descent with momentum, or Adam."""
    lr: float = 0.1
    """Learning rate before the schedule."""
    momentum: float = 0.9
    """SGD's momentum."""
    nesterov: bool = False
    """SGD's Nesterov form."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Adam's two averaging rates."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    """Cosine falls to 0 over the run; multistep multiplies by `gamma` at each milestone."""
    milestones: list[float] = field(default_factory=list)
    """Fractions of the run at which multistep falls, each in (0, 1)."""
    gamma: float = 0.1
    """Multistep's factor."""
    clip: float = 0.0
    """Largest global gradient norm; 0 does not clip."""


@dataclass(frozen=True)
class Teacher:
    """The network to compress, and the input it expects."""

    network: str = ""
    """A built-in name, "timm:NAME", "torchvision:NAME" or "path/to/file.py:function"."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network."""
    checkpoint: str | None = None
    """Its weights, a file; null: where `ddad teach` puts them; "untrained": random weights, marked as such."""
    entry: str | None = None
    """Which weights of that file, as a dotted path such as state_dict_ema, "." for its top; null: those that fit."""
    mean: list[float] | None = None
    """Per-channel mean its input was normalised with, for pixels in 0..1, in `channels` order; null: 0."""
    std: list[float] | None = None
    """Per-channel standard deviation, likewise; null: 1."""
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channel order of its input."""


@dataclass(frozen=True)
class Student(Optimizer):
    """The small network to train, and how."""

    network: str = ""
    """As the teacher's; or "pruned": the teacher, of which the share in `arguments` remains, with what weights it has
    left."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network; of a pruned one macs, parameters or channels, and blocks: shares."""
    start: str = FRESH
    """The weights it begins with: "fresh" ones, those of the "teacher" with the same path and shape, or a file's."""
    blocks: list[int] | dict[str, Any] | None = None
    """With start=teacher, the teacher's blocks for a stage that has fewer, or {stage: blocks}; null: the first ones."""
    reconstruct: int = 0
    """Batches of generated images on which a pruned student's layers are fitted to the teacher's before the first
    round, by least squares; 0: they are not."""
    weight_decay: float = 5e-4
    """L2 penalty added to the gradient."""
    average: float = 0.0
    """Share of the run's updates over which its weights are averaged, for evaluation and as result; 0: they are not."""
    attention: Weight = 0.0
    """Weight of attention transfer at inner feature maps, beside the discrepancy, whose weight is 1."""
    features: Weight = 0.0
    """Weight of the distance between the outputs of blocks that teacher and student share, beside the discrepancy."""


@dataclass(frozen=True)
class Generator(Optimizer):
    """The network that invents images, and how it is trained."""

    network: str = "upsample"
    """A name in `harness.algorithm.generators.GENERATORS`: `dcgan` takes sizes divisible by 16, the others by 4."""
    latent_size: int = 256
    """Length of the latent vector z."""
    width: int = 0
    """Channels of the last hidden layer; 0: the network's usual number."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """As the student's."""
    lr: float = 1e-3
    """Learning rate before the schedule."""
    warmup: int = 0
    """Rounds before the first in which only the generator learns, by all its terms but the student's disagreement."""
