"""A run as plain data: frozen dataclasses, a docstring under every field.

What is recorded here is what is needed to run it again. The only way to change a run is `path=value`,
strict on unknown paths and on types, the same for the command line, YAML files, sweeps and tests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.config import check, parse
from harness.config.parse import Overlay
from harness.errors import UserError

SCHEMA = 1
"""Rises only when the meaning of a recorded field changes; a new field takes its default."""

UNTRAINED = "untrained"
"""The value of `teacher.checkpoint` that asks for random weights."""

Weight = float | list[list[float]]
"""A number, or a schedule [[round, value], ...]: each value holds from its round (0 first) until the next."""


@dataclass(frozen=True)
class Weights:
    """Weights of the generator's terms (docs/method.md); a term of weight 0 is not computed."""

    adversarial: Weight = 1.0
    """The student's disagreement with the teacher, which the generator seeks."""
    batch_norm: Weight = 1.0
    """Distance of the batch statistics in the teacher from its running ones: the teacher as discriminator."""
    one_hot: Weight = 0.0
    """Cross entropy of the teacher's answer with its own argmax."""
    class_balance: Weight = 0.0
    """Negative entropy of the batch's mean prediction."""
    sample_entropy: Weight = 0.0
    """Mean entropy of the single predictions."""
    activation: Weight = 0.0
    """Minus the mean absolute penultimate feature."""
    tv: Weight = 0.0
    """Total variation of the images."""
    l2: Weight = 0.0
    """L2 norm of the images."""
    target: Weight = 0.0
    """Cross entropy of the teacher's answer with the class an image is made for, around which its latent is drawn."""
    contrastive: Weight = 0.0
    """Two views of an image against those of all others, this batch's and earlier ones; where images are inverted."""


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
    """As the teacher's."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network."""
    weight_decay: float = 5e-4
    """L2 penalty added to the gradient."""
    average: float = 0.0
    """Share of the run's updates over which its weights are averaged, for evaluation and as result; 0: they are not."""
    attention: Weight = 0.0
    """Weight of attention transfer at inner feature maps, beside the discrepancy, whose weight is 1."""


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


@dataclass(frozen=True)
class Replay:
    """Student turns on earlier images and what the teacher said of them: they cost neither generator nor teacher."""

    share: float = 0.0
    """Share of a round's student turns that draw from a pool of earlier batches; 0: there is no pool."""
    memory: float = 64.0
    """MiB that the pool may take, over all processes; new batches replace the oldest."""
    storage: Literal["uint8", "fp16"] = "uint8"
    """How its images are stored: 256 steps over the range of each channel of an image, or halves."""
    place: Literal["host", "device"] = "host"
    """Where the pool is: in the host's memory, or on the device that computes."""
    augment: bool = False
    """Show its images under a random crop and mirroring; the teacher is then asked again."""


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
class Input:
    """What the teacher and the student take."""

    size: int | list[int] = 32
    """Side of a square image, or [height, width], in pixels."""
    mirror: bool = True
    """Whether a mirrored image is still one of its class: views of generated images may then be mirrored."""


@dataclass(frozen=True)
class Data:
    """Real data: for evaluation, and for `teach` and `method=kd`; never for a data-free run's training."""

    name: str = "none"
    """A data set of the task, "image_folder", or "none": the run then reports agreement on generated images."""
    root: str | None = None
    """Where data sets are; null: $DDAD_DATA, else ./data."""
    size: int | list[int] | None = None
    """Side or [height, width] that test images are brought to; null: `input.size`, or full frame where pixels count."""
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
    """Replicated networks (`ddp`; alone, just the network), sharded ones, or `single` to insist on one process."""
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
    """On a GPU, multiply fp32 numbers with 10 bits of mantissa; null: torch's own choice, convolutions alone. Gives up
    that 1 process equals N to rounding in fp32."""


@dataclass(frozen=True)
class Tracking:
    """Where the experiment is recorded beside its run folder."""

    uri: str = "sqlite:///mlflow.db"
    """An MLflow tracking URI; "none" records in the run folder alone."""
    experiment: str = "ddad"
    """The MLflow experiment."""
    parent: str | None = None
    """The MLflow run that this one is a child of, such as a sweep's; null: none."""
    model: bool = True
    """Log the student as an MLflow model at the end."""


@dataclass(frozen=True)
class Checkpoint:
    """How often the state of a run is saved."""

    every: int = 50
    """Rounds between checkpoints."""
    keep: int = 2
    """How many of the latest are kept."""


@dataclass(frozen=True)
class Config:
    """One run."""

    schema: int = SCHEMA
    """Version of the meaning of these fields."""
    task: str = ""
    """A folder of `tasks/`."""
    recipe: str = ""
    """The recipe these values started from."""
    method: str = "ddad"
    """One of `harness.methods.METHODS`."""
    variant: str = "paper"
    """A named set of the method's settings; published figures keep their variant."""
    seed: int = 0
    """Every random draw is a function of (seed, round, turn, index in the global batch)."""
    rounds: int = 1000
    """Rounds of `student_steps` student turns and one generator turn."""
    batch_size: int = 128
    """Images a turn, over all processes."""
    student_steps: int = 5
    """Student turns a round."""
    classes: int = 0
    """Number of classes K."""
    weights: Weights = field(default_factory=Weights)
    batch_norm_form: Literal["norm", "kl"] = "norm"
    """Form of the batch-norm term: DeepInversion's norms or DFQ's KL divergence of Gaussians."""
    discrepancy: str = "l1"
    """D(t, s), the discrepancy the generator raises; a name in `harness.algorithm.losses.DISCREPANCIES`."""
    student_discrepancy: str | None = None
    """The discrepancy the student lowers; null: the same."""
    adversarial_transform: Literal["identity", "log1p"] = "identity"
    """A, applied to the mean discrepancy in the generator's turn."""
    adversarial_where: Literal["all", "agreed"] = "all"
    """Which predictions the generator's discrepancy counts; `agreed`: those of one class in teacher and student."""
    adversarial_after: float = 0.0
    """Share of the rounds that are over before the generator seeks the student's disagreement."""
    temperature: float = 1.0
    """Temperature of the `kl` and `js` discrepancies."""
    student_temperature: float | None = None
    """Temperature of the discrepancy the student lowers; null: the same."""
    teacher: Teacher = field(default_factory=Teacher)
    student: Student = field(default_factory=Student)
    generator: Generator = field(default_factory=Generator)
    replay: Replay = field(default_factory=Replay)
    inversion: Inversion = field(default_factory=Inversion)
    input: Input = field(default_factory=Input)
    data: Data = field(default_factory=Data)
    teach: Teach = field(default_factory=Teach)
    micro_batches: int = 1
    """Parts of a batch that a turn takes in sequence before its update; each is its own batch for statistics."""
    sync_batch_norm: bool = True
    """Trained networks normalise by the global batch; false: by each process's part, and N processes are not as one."""
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
    evaluate_every: int = 0
    """Rounds between two evaluations along the way, for a curve only; 0: at the end alone."""
    max_minutes: float | None = None
    """End this invocation early, after so many minutes, with a checkpoint; null: no limit."""


BOOKKEEPING = frozenset(
    {"distributed", "tracking", "checkpoint", "pictures", "log_every", "evaluate_every", "max_minutes"}
)
"""Fields that do not determine the result: they alone may change when a run is resumed."""


def build(overlay: Overlay) -> Config:
    """The Config that `overlay` describes over the field defaults.

    Raises UserError for an unknown path, a value of the wrong type, one out of range, or another schema.
    """
    schema = overlay.get("schema", SCHEMA)
    if schema != SCHEMA:
        raise UserError(
            f"this configuration has schema {schema!r}, this version reads schema {SCHEMA}: "
            "use the version of ddad that wrote it, or start again from its recipe"
        )
    config = parse.build(Config, overlay)
    check.check(flat(config), _num_channels(config))
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The whole configuration as nested plain data; `build` gives back an equal Config."""
    return dataclasses.asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """The whole configuration as {dotted path: value}."""

    def walk(node: Overlay, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(to_dict(config), ""))


def identity(config: Config) -> str:
    """Eight hexadecimal digits over every field that determines the result."""
    kept = {key: value for key, value in to_dict(config).items() if key not in BOOKKEEPING}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def differences(a: Config, b: Config) -> list[str]:
    """The dotted paths, of those that determine the result, at which two configurations differ."""
    left, right = flat(a), flat(b)
    return [
        path
        for path in sorted(left.keys() | right.keys())
        if left.get(path) != right.get(path) and path.split(".")[0] not in BOOKKEEPING
    ]


def image_shape(config: Config) -> tuple[int, int, int]:
    """(C, H, W) of an input image."""
    return (_num_channels(config), *sides(config.input.size))


def sides(size: int | list[int]) -> tuple[int, int]:
    """(H, W) of a size: a side, or [height, width]."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def weight_at(weight: Weight, round_index: int) -> float:
    """The value of a weight or of its schedule in a round."""
    if not isinstance(weight, list):
        return weight
    return [value for start, value in weight if start <= round_index][-1]


def ever(weight: Weight) -> bool:
    """Whether a weight counts in any round."""
    return any(value for _, value in weight) if isinstance(weight, list) else bool(weight)


def _num_channels(config: Config) -> int:
    return 1 if config.teacher.channels == "gray" else 3
