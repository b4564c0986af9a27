"""Where the images of a run come from: what networks take, earlier images, images made by many steps, real data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Input:
    """What the teacher and the student take."""

    size: int | list[int] = 32
    """Side of a square image, or [height, width], in pixels."""
    mirror: bool = True
    """Whether a mirrored image is still one of its class: views of generated images may then be mirrored."""


@dataclass(frozen=True)
class Replay:
    """Student turns on earlier images and the teacher's stored answers: they cost no pass of generator or teacher."""

    share: float = 0.0
    """Share of a round's student turns that draw from a pool of earlier batches; 0: there is no pool."""
    memory: float = 64.0
    """MiB that the pool may take, over all processes; new batches replace the oldest."""
    storage: Literal["uint8", "fp16"] = "uint8"
    """How its images are stored: 256 steps over the range of each channel of an image, or halves."""
    place: Literal["host", "device"] = "host"
    """Where the pool is: in the host's memory, or on the device that computes."""
    augment: bool = False
    """Show its images under a random crop and mirroring; the teacher then answers anew."""


@dataclass(frozen=True)
class Inversion:
    """Methods that make each batch by many steps against the teacher and keep it: `deepinversion`, `cmi`, `fast`."""

    steps: int = 200
    """Image steps a batch in a run of `rounds` rounds; a shorter run takes proportionally fewer, at least one."""
    rounds: int = 1
    """Rounds from which on a batch takes all its `steps`."""
    views: Literal["none", "jitter", "crop"] = "none"
    """What the networks see of an image in a step: itself, or a shift around its edges or a crop, mirrored or not."""
    latent_lr: float | None = None
    """Learning rate of the latents; null: the generator's."""
    momentum: float = 0.0
    """Share of earlier batches in the statistics that the batch-norm term compares."""
    bank: int = 4096
    """Earlier images whose features the contrastive term keeps."""


@dataclass(frozen=True)
class Data:
    """Real data: for evaluation, and for `teach` and `method=kd`; never for a data-free run's training."""

    name: str = "none"
    """A data set of the task, "image_folder", or "none": the run then reports agreement on generated images."""
    root: str | None = None
    """Where data sets are; null: $DDAD_DATA, else ./data."""
    size: int | list[int] | None = None
    """Side or [height, width] that test images are brought to; null: `input.size`, or full frame where pixels count."""
    background: list[int] | None = None
    """Colour behind transparent pixels, [red, green, blue] in 0..255; null: images with such pixels are refused."""
    labels: dict[str, int] = field(default_factory=dict)
    """Class, or 255 for void, of each value or "#rrggbb" in label images of `folders`; empty: values are classes."""
    workers: int = 0
    """Processes that load and augment images."""


@dataclass(frozen=True)
class Teach:
    """How `ddad teach` trains the recipe's teacher on real data."""

    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Images an update."""
    lr: float = 0.1
    """SGD's learning rate before the cosine."""
    weight_decay: float = 5e-4
    """L2 penalty added to the gradient."""
    seed: int = 0
    """The teacher's own seed: it does not follow the run's."""
    automatic: bool = False
    """`ddad distill` teaches an absent teacher by itself; for the embedded data set, which takes seconds."""
