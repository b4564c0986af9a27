"""The three networks of a run, and the training settings of student and generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from harness.config.weights import Weight

UNTRAINED = "untrained"
"""The value of `teacher.checkpoint` for random weights."""

MEMORY = "memory"
"""The value of `teacher.checkpoint` and `student.start` for the weights of a module that was given from Python; the
names of such networks are "memory:CLASS"."""

PRETRAINED = "pretrained"
"""The value of `teacher.checkpoint` for the weights that the network's own library publishes."""

PRUNED = "pruned"
"""The value of `student.network` for a pruned copy of the teacher."""

FRESH, FROM_TEACHER = "fresh", "teacher"
"""The values of `student.start` that are not files."""


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
    """Cosine decays to 0 over the run; multistep multiplies by `gamma` at each milestone."""
    milestones: list[float] = field(default_factory=list)
    """Fractions of the run, each in (0, 1), at which multistep decays."""
    gamma: float = 0.1
    """Multistep's factor."""
    clip: float = 0.0
    """Largest global gradient norm; 0: no clipping."""


@dataclass(frozen=True)
class Teacher:
    """The network to compress, and the input it expects."""

    network: str = ""
    """A built-in name, "timm:NAME", "torchvision:NAME" or "path/to/file.py:function"."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network."""
    checkpoint: str | None = None
    """File of its weights, or "hub:OWNER/NAME[/FILE][@REVISION]"; null: the file that `ddad teach` writes;
    "pretrained": the weights that timm or torchvision publishes; "untrained": random weights, marked as such; "memory":
    those of a module that was given from Python, of which the run keeps a copy."""
    entry: str | None = None
    """Weights in that file, as a dotted path such as state_dict_ema, "." for its top; null: those that fit."""
    mean: list[float] | None = None
    """Per-channel mean of its input normalisation, for pixels in 0..1, in `channels` order; null: 0, or if pretrained
    that of the weights."""
    std: list[float] | None = None
    """Per-channel standard deviation, likewise; null: 1, or if pretrained that of the weights."""
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channel order of its input."""


@dataclass(frozen=True)
class Student(Optimizer):
    """The small network to train, and its training settings."""

    network: str = ""
    """A network name as for the teacher; or "pruned": the teacher with channels or blocks removed, and its remaining
    weights."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network; if pruned, the shares that remain: macs, parameters or channels, and blocks."""
    start: str = FRESH
    """Initial weights: "fresh", those of the "teacher" with the same path and shape, a file, "hub:...", or "memory":
    those of a module that was given from Python."""
    blocks: list[int] | dict[str, Any] | None = None
    """With start=teacher: blocks of the teacher to copy into a shorter stage, or {stage: blocks}; null: the first."""
    reconstruct: int = 0
    """Batches of generated images for the least-squares fit of a pruned student's layers to the teacher's before the
    first round; 0: no fit."""
    weight_decay: float = 5e-4
    """L2 penalty added to the gradient."""
    average: float = 0.0
    """Share of the run's updates over which its weights are averaged for evaluation and the result; 0: no average."""
    attention: Weight = 0.0
    """Weight of attention transfer at inner feature maps; the discrepancy has weight 1."""
    hints: Weight = 0.0
    """Weight of what the student's feature maps, of any width, do not explain of the teacher's of the same size."""
    features: Weight = 0.0
    """Weight of the distance between the outputs of blocks that teacher and student have in common."""
    features_until: float = 1.0
    """Share of the rounds after which that distance is switched off."""

    @property
    def comparisons(self) -> dict[str, Weight]:
        """The weights of the terms that compare inner layers of student and teacher, by field."""
        return {"attention": self.attention, "hints": self.hints, "features": self.features}


@dataclass(frozen=True)
class Generator(Optimizer):
    """The network that generates images, and its training settings."""

    network: str = "upsample"
    """A name in `harness.algorithm.generators.GENERATORS`: `dcgan` takes sizes divisible by 16, the others by 4."""
    latent_size: int = 256
    """Length of the latent vector z."""
    class_distance: float = 8.0
    """With `weights.target`: distance from 0 of the centre of a class's latents, which have about the length
    sqrt(latent_size) around it; the larger, the more alike are the images of a class."""
    width: int = 0
    """Channels of the last hidden layer; 0: the network's usual number."""
    optimizer: Literal["sgd", "adam"] = "adam"
    """As the student's."""
    lr: float = 1e-3
    """Learning rate before the schedule."""
    warmup: int = 0
    """Warm-up rounds before the first round; they train only the generator, without the adversarial term."""
    restart: int = 0
    """Rounds after which the generator begins anew, with fresh weights and moments; 0: never."""
    average: float = 0.0
    """Share of the run's updates over which its weights are averaged for the images of others' turns; 0: no average."""
    embeddings: str | None = None
    """File of the class embeddings [classes, E] of noisy layers, safetensors or torch.save's; null: drawn at random
    from the seed."""
