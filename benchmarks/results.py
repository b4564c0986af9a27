"""Students that start from their teachers, on real data sets: `python -m benchmarks.results`.

    DDAD_DATA=/path/to/data python -m benchmarks.results                          # every pair and method, 300 s each
    DDAD_DATA=/path/to/data python -m benchmarks.results --seconds 1500 --pairs cifar10-resnet32-half --methods warm

How the runs are made equal is said in benchmarks.equal_time. Prints one table over all pairs and writes it to
benchmarks/RESULTS-starts.md, with a figure beside the rows.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import methods
from benchmarks.equal_time import Study
from benchmarks.methods import Suite

INTRODUCTION = """# Students that start from their teachers

Written by `python -m benchmarks.results`, which says how its figures come about. Scores are of final states on whole
test sets, in percent (accuracy; mean IoU on CamVid and NYUv2), the standard deviation over seeds after ±; seconds are
of the processor time of one thread (the rows in benchmarks/results/ have versions, commit and date). A name that ends
in `half` is a student of half its teacher's multiply-adds, cut out of it.

The rows of `dfad`, `cmi`, `fast`, `nayer` and `kd` have the student's settings of `warm`: its learning rate, schedule,
clipping and comparison of blocks. Rows that begin with `warm` and a sign are `warm` with one part taken away or one
more. In rows with `new latents` the generator draws new ones in each of its turns, of which a round has one, as in
`fresh`; that is the variant `warm` as it was until 2026-11-29. Rows of the halves of before, which were cut evenly, are
in [RESULTS-starts-2026-11-29.md](RESULTS-starts-2026-11-29.md).

The figure leaves out what is more than 30 points below the best of a pair.

![curves](results/starts.png)
"""

STUDENT = (
    "student.lr=0.02", "student.schedule=cosine", "student.average=0", "student.features=100", "student.clip=5",
)  # fmt: skip
"""The student's settings of `warm`, for every method: a published learning rate of 0.1 undoes what it starts with."""

KL = ("student_discrepancy=kl", "student_temperature=4", "student.features=10")
"""The student minimises the KL divergence, and the comparison of blocks weighs about as much as it."""

UNTIL = ("student.features_until=0.5",)
"""Blocks are compared in the first half of the rounds alone."""

WHOLE = ("generator.network=upsample", "inversion.views=none")
"""The default generator, judged by whole images: what `fresh` and `blocks` had until 2026-11-29."""

SMALL = ("batch_size=32",)
"""A quarter of the recipe's batch, so four times the rounds and the updates in the same seconds."""

CONSTANT = ("student.schedule=constant", "student.average=0.05")
"""The constant learning rate and averaged weights of `fresh`, in place of the falling rate of `blocks`."""

NO_HINTS = ("student.hints=0",)

BEFORE = (*NO_HINTS, *CONSTANT, *WHOLE)
"""`blocks` as it was until 2026-11-29."""

NEW = (*STUDENT, "student.reconstruct=6", "generator.warmup=80", *WHOLE)
"""What `warm` as it was has beyond `fresh`, whose generator draws new latents in each turn and has one turn a round."""

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "warm": ("ddad:warm", ()),
    "warm + KL": ("ddad:warm", KL),
    "warm + blocks for half": ("ddad:warm", UNTIL),
    "warm, batches of 32": ("ddad:warm", SMALL),
    "warm + blocks for half, batches of 32": ("ddad:warm", (*UNTIL, *SMALL)),
    "blocks, batches of 32": ("ddad:blocks", SMALL),
    "blocks - hints - falling rate - pixels - crops judged": ("ddad:blocks", BEFORE),
    "dfad": ("dfad", STUDENT),
    "cmi": ("cmi", STUDENT),
    "fast": ("fast", STUDENT),
    "nayer": ("nayer", STUDENT),
    "kd": ("kd", STUDENT),
    "dfad, batches of 32": ("dfad", (*STUDENT, *SMALL)),
    "cmi, batches of 32": ("cmi", (*STUDENT, *SMALL)),
    "fast, batches of 32": ("fast", (*STUDENT, *SMALL)),
    "nayer, batches of 32": ("nayer", (*STUDENT, *SMALL)),
    "warm_noisy": ("ddad:warm_noisy", ()),
    "warm_noisy, batches of 32": ("ddad:warm_noisy", SMALL),
    "warm - adversary, batches of 32": ("ddad:warm", ("weights.adversarial=0", *SMALL)),
    "warm - generator, batches of 32": ("ddad:warm", ("generator.lr=1e-12", "generator.warmup=0", *SMALL)),
    "warm - adversary": ("ddad:warm", ("weights.adversarial=0",)),
    "warm - batch norm": ("ddad:warm", ("weights.batch_norm=0", "generator.warmup=0")),
    "warm - generator": ("ddad:warm", ("generator.lr=1e-12", "generator.warmup=0")),
    "warm - crops judged": ("ddad:warm", ("inversion.views=none",)),
    "warm - mixup": ("ddad:warm", ("replay.mixup=false",)),
    "warm - features": ("ddad:warm", ("student.features=0",)),
    "warm - reconstruction": ("ddad:warm", ("student.reconstruct=0",)),
    "warm, new latents": ("ddad:fresh", NEW),
}  # fmt: skip
"""Method and settings of a row's name. Without its generator, `warm` has the images of one that never learns.
Without batch norm it has no warm-up, which learns nothing else."""

AKAMASTER = ("teacher.mean=[0.485,0.456,0.406]", "teacher.std=[0.229,0.224,0.225]")
KARANCHAHAL = ("teacher.mean=[0.4914,0.4822,0.4465]", "teacher.std=[0.2023,0.1994,0.2010]")
KARANCHAHAL_100 = ("teacher.mean=[0.507,0.487,0.441]", "teacher.std=[0.267,0.256,0.276]")
"""What the published checkpoints' input was normalised with."""

HALF = ("student.network=pruned", "student.arguments={macs: 0.5}")


def _third_party(data: str, classes: int, network: str, file: str, *words: str) -> Suite:
    weights = Path(os.environ.get("DDAD_DATA", "data")) / "weights" / file
    given = (f"classes={classes}", f"data.name={data}", f"teacher.network={network}", f"teacher.checkpoint={weights}")
    return Suite("classification", (0,), 0, (*given, *FAST, *words), evaluations=4)


FAST = ("precision=bf16", "generator.width=32")
"""Half of fp32's time on a CPU that has bf16, and a smaller generator than the default."""

_RESNET32 = ("cifar10", 10, "resnet32", "cifar10/akamaster/resnet32-d509ac18.th", *AKAMASTER)
_WRN28 = ("cifar10", 10, "wrn28_1", "cifar10/karanchahal/WRN28_1_cifar10.pth", *KARANCHAHAL)
_RESNET26 = (
    "cifar100", 100, "examples/karanchahal_resnet.py:resnet26", "cifar100/karanchahal/resnet26_cifar100.pth",
    *KARANCHAHAL_100,
)  # fmt: skip

PAIRS: dict[str, Suite] = {
    "cifar10-resnet32-half": _third_party(*_RESNET32, *HALF),
    "cifar10-resnet32-resnet20": _third_party(*_RESNET32, "student.network=resnet20", "student.start=teacher"),
    "cifar10-resnet32-resnet20-fresh": _third_party(*_RESNET32, "student.network=resnet20"),
    "cifar10-wrn28_1-wrn16_1": _third_party(*_WRN28, "student.network=wrn16_1", "student.start=teacher"),
    "cifar100-resnet26-half": _third_party(*_RESNET26, *HALF),
    "caltech101-resnet18-half": Suite("caltech101-resnet18-resnet10t", (0,), 0, (*FAST, *HALF), evaluations=4),
    "camvid-resnet18-half": Suite("camvid-resnet18-mobilenetv2", (0,), 0, (*FAST, *HALF), evaluations=4),
    "nyuv2-resnet18-half": Suite("nyuv2-resnet18-mobilenetv2", (0,), 0, (*FAST, *HALF), evaluations=4),
}
"""A pair of networks, and what its student starts from."""


RESNET20_HALF = _third_party("cifar10", 10, "resnet20", "cifar10/akamaster/resnet20-12fca82f.th", *AKAMASTER, *HALF)
"""The pair of benchmarks.objectives on CIFAR-10."""

RESNET20_FRESH = _third_party("cifar10", 10, "resnet20", "cifar10/akamaster/resnet20-12fca82f.th", *AKAMASTER,
                              "student.network=resnet20")  # fmt: skip
"""The CIFAR-10 pair of benchmarks.parts: ResNet-20, and a new one."""


def possible(pair: str) -> list[str]:
    """The methods of a pair: `kd` needs training images, `cmi`, `fast` and `nayer` make an image for one class."""
    missing = {"kd"} if PAIRS[pair].recipe == "classification" else set()  # third-party pairs have test images alone
    if pair.startswith(("camvid", "nyuv2")):
        missing |= {"cmi", "fast", "nayer", "ddad:warm_noisy"}
    return [name for name, (method, _) in METHODS.items() if method not in missing]


STUDY = Study(
    PAIRS,
    METHODS,
    possible,
    INTRODUCTION,
    Path(__file__).with_name("RESULTS-starts.md"),
    methods.RESULTS / "starts.png",
    in_view=30.0,
)

if __name__ == "__main__":
    STUDY.main("benchmarks.results", __doc__)
