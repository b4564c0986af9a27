"""The images of a run: the network input, replay, batches made by many steps, real data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

BatchSource = Literal["pixels", "fresh", "meta", "noisy"]
"""What a batch that many steps optimise is made from: pixels; a generator with new weights for each batch; one with
meta-learned initial weights; one of class embeddings behind noisy layers, which alone are new for each batch."""


@dataclass(frozen=True)
class Input:
    """The input of teacher and student."""

    size: int | list[int] = 32
    """Side of a square image, or [height, width], in pixels."""
    mirror: bool = True
    """Whether a mirrored image keeps its class; if so, views of generated images may be mirrored."""


@dataclass(frozen=True)
class Replay:
    """Student turns on earlier images and the stored logits of the teacher, without running generator or teacher."""

    share: float = 0.0
    """Share of a round's student turns that draw from a pool of earlier batches; 0: there is no pool."""
    memory: float = 64.0
    """Largest size of the pool in MiB, over all processes; new batches replace the oldest."""
    storage: Literal["uint8", "fp16"] = "uint8"
    """Storage of its images: 256 steps over the range of each channel of an image, or fp16."""
    place: Literal["host", "device"] = "host"
    """Memory of the pool: the host's or the accelerator's."""
    augment: bool = False
    """Apply a random crop and mirroring to its images; the teacher then runs on them again."""
    mixup: bool = False
    """Replace each image, after `augment`, by a mixture with another one of the pool."""


@dataclass(frozen=True)
class Inversion:
    """Methods that optimise each batch by many steps and store it: `deepinversion`, `cmi`, `fast`, `nayer`, or `ddad`.

    `views` is for every generator.
    """

    source: BatchSource | None = None
    """For `ddad`, what such batches are made from, which the other four methods have fixed: pixels, a generator that is
    new for each batch, one of meta-learned weights, one of class embeddings behind noisy layers. null: `ddad`'s own
    rounds, of generator and student in turn."""
    steps: int = 200
    """Image steps for a batch in a run of `rounds` rounds; a shorter run has proportionally fewer, at least one."""
    rounds: int = 1
    """Least number of rounds for which a batch has all its `steps`."""
    views: Literal["none", "jitter", "crop"] = "none"
    """What teacher and student see of an image in an image step or a generator's turn: the image, a shift around its
    edges, or a crop; the last two may be mirrored."""
    latent_lr: float | None = None
    """Learning rate of the latents; null: the generator's."""
    momentum: float = 0.0
    """Weight of earlier batches in the averaged statistics of the batch-norm term."""
    bank: int = 4096
    """Number of earlier images whose features are kept for the contrastive term."""


@dataclass(frozen=True)
class Data:
    """Real data, for evaluation, `teach` and `method=kd`; never for the training of a data-free run."""

    name: str = "none"
    """A data set of the task, "image_folder", or "none": the run then reports agreement on generated images."""
    root: str | None = None
    """Folder of the data sets; null: $DDAD_DATA, else ./data."""
    size: int | list[int] | None = None
    """Side or [height, width] of test images; null: `input.size`, or, for segmentation, their own size."""
    background: list[int] | None = None
    """Background of transparent pixels, [red, green, blue] in 0..255; null: images with such pixels are refused."""
    labels: dict[str, int] = field(default_factory=dict)
    """Class, or 255 for void, of each value or "#rrggbb" in label images of `folders`; empty: values are classes."""
    workers: int = 0
    """Processes that load and augment images."""


@dataclass(frozen=True)
class Teach:
    """How `ddad teach` trains the recipe's teacher on real data."""

    epochs: int = 200
    """Epochs."""
    batch_size: int = 128
    """Images an update."""
    lr: float = 0.1
    """Initial learning rate of SGD; it follows a cosine."""
    weight_decay: float = 5e-4
    """L2 penalty added to the gradient."""
    seed: int = 0
    """Seed of the teacher, independent of the run's seed."""
    automatic: bool = False
    """Whether `ddad distill` trains a missing teacher; for the embedded data set, which takes seconds."""
