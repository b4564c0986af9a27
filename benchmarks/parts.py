"""What each part of `ddad:fresh`, `ddad:blocks` and `ddad:held` is worth: `python -m benchmarks.parts`.

    OMP_NUM_THREADS=1 python -m benchmarks.parts --pairs fashion-parts --seconds 60 --seeds 0 1 2
    DDAD_DATA=/path/to/data OMP_NUM_THREADS=1 python -m benchmarks.parts --pairs cifar10-parts --seconds 300

Rows with a minus are a variant without one of its parts, rows with a plus have one thing more. How the runs are
made equal is said in benchmarks.equal_time. Prints one table over all pairs and writes it to
benchmarks/RESULTS-parts.md, with a figure beside the rows.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from benchmarks import methods
from benchmarks.equal_time import Study
from benchmarks.methods import FASHION, Suite
from benchmarks.results import BEFORE, CONSTANT, FAST, NO_HINTS, RESNET20_FRESH, SMALL, WHOLE

INTRODUCTION = """# The parts of `ddad:fresh`, `ddad:blocks` and `ddad:held`

Written by `python -m benchmarks.parts`. Students begin with random weights. Scores are of final states on whole test
sets, in percent, the standard deviation over seeds after ±; seconds are of the processor time of one thread (the rows
in benchmarks/results/ have versions, commit and date). No setting was chosen by these rows; that `nayer` with hints was
above `hinted` was the occasion to try NAYER's losses there ([RESULTS-methods.md](RESULTS-methods.md)), and README's
advice for segmentation is by those of CamVid. The machine's speed changes within hours, by what else its host does:
compare rounds as well. Earlier rows of `fresh` on Fashion-MNIST (130 rounds), and of two generator steps (95 rounds),
are in [fashion-parts-2026-11-29.jsonl](results/fashion-parts-2026-11-29.jsonl).

`fresh - pixels - crops judged` is the variant `fresh` as it was until 2026-11-29. `blocks` had no hints, a constant
learning rate and averaged weights until 2026-11-30. `dfad`, `dafl`, `dfq`, `cmi`, `fast` and `nayer` have their
published settings; with `+ blocks` they have the same comparison of blocks as `blocks`, with `+ blocks + hints` its
hints (`student.hints=30`) too; `+ hints` alone is `student.hints=3`, in `fresh + hints` with gradients clipped at 5.

![curves](results/parts.png)
"""

PAIRS: dict[str, Suite] = {
    "fashion-parts": Suite("classification", (0,), 0, FASHION, evaluations=4),
    "cifar10-parts": dataclasses.replace(RESNET20_FRESH, evaluations=4),
    "camvid-parts": Suite("camvid-resnet18-mobilenetv2", (0,), 0, FAST, evaluations=4),
}

BLOCKS = ("student.features=10", "student.clip=5")
"""The student's blocks are compared with the teacher's; the pair of Fashion-MNIST has none in common."""

HINTS = ("student.hints=30",)
"""With BLOCKS, all that `blocks` compares."""

CHANGES = {
    " - warm-up": ("generator.warmup=0",),
    " - generator's rate": ("generator.lr=0.001",),
    " - batch norm's weight": ("weights.batch_norm=1",),
    " - adversary": ("weights.adversarial=0",),
    " + 2 generator steps": ("generator_steps=2",),
    " + class centres": ("weights.target=0.5", "weights.class_balance=1.4"),
    " + a new generator each 100 rounds": ("generator.restart=100",),
    " + an averaged generator": ("generator.average=0.05",),
    " + KL for the student": ("student_discrepancy=kl", "student_temperature=4"),
    " + KL of batch norm": ("batch_norm_form=kl",),
}
"""What is tried at the generator and the losses, by itself, of `fresh` and of `blocks`."""

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fresh": ("ddad:fresh", ()),
    "fresh - crops": ("ddad:fresh", ("replay.augment=false",)),
    "fresh - crops judged": ("ddad:fresh", ("inversion.views=none",)),
    "fresh - pixels - crops judged": ("ddad:fresh", WHOLE),
    "fresh + hints": ("ddad:fresh", ("student.hints=3", "student.clip=5")),
    "fresh + mixup": ("ddad:fresh", ("replay.mixup=true",)),
    "blocks": ("ddad:blocks", ()),
    "blocks - features": ("ddad:blocks", ("student.features=0",)),
    "blocks - hints - falling rate": ("ddad:blocks", (*NO_HINTS, *CONSTANT)),
    "blocks - hints - falling rate - pixels - crops judged": ("ddad:blocks", BEFORE),
    "held": ("ddad:held", ()),
    "held + blocks": ("ddad:held", BLOCKS),
    "held - crops judged": ("ddad:held", ("inversion.views=none",)),
    "held - mixup": ("ddad:held", ("replay.mixup=false",)),
    "held - adversary": ("ddad:held", ("weights.adversarial=0",)),
    "dfad + blocks": ("dfad", BLOCKS),
    "cmi + blocks": ("cmi", BLOCKS),
    "fast + blocks": ("fast", BLOCKS),
    "nayer + blocks": ("nayer", BLOCKS),
    "dfad": ("dfad", ()),
    "dafl": ("dafl", ()),
    "dfq": ("dfq", ()),
    "kd": ("kd", ()),
    "cmi": ("cmi", ()),
    "fast": ("fast", ()),
    "nayer": ("nayer", ()),
    "fresh + batches of 32": ("ddad:fresh", SMALL),
    "blocks + batches of 32": ("ddad:blocks", SMALL),
    "blocks - falling rate + batches of 32": ("ddad:blocks", (*CONSTANT, *SMALL)),
    "blocks - hints - falling rate + batches of 32": ("ddad:blocks", (*NO_HINTS, *CONSTANT, *SMALL)),
    "blocks - features + batches of 32": ("ddad:blocks", ("student.features=0", *SMALL)),
    "cmi + batches of 32": ("cmi", SMALL),
    "fast + batches of 32": ("fast", SMALL),
    "nayer + batches of 32": ("nayer", SMALL),
    "dfad + batches of 32": ("dfad", SMALL),
    "noisy + batches of 32": ("ddad:noisy", SMALL),
    "noisy + contrast + batches of 32": ("ddad:noisy", ("weights.contrastive=0.8", *SMALL)),
    "hinted + batches of 32": ("ddad:hinted", SMALL),
    "nayer + hints + batches of 32": ("nayer", ("student.hints=3", *SMALL)),
    "nayer + blocks + batches of 32": ("nayer", (*BLOCKS, *SMALL)),
    "nayer + blocks + hints + batches of 32": ("nayer", (*BLOCKS, *HINTS, *SMALL)),
    "dfad + blocks + hints + batches of 32": ("dfad", (*BLOCKS, *HINTS, *SMALL)),
    "noisy + blocks + batches of 32": ("ddad:noisy", (*BLOCKS, *SMALL)),
    **{f"fresh{change}": ("ddad:fresh", settings) for change, settings in CHANGES.items()},
    **{f"blocks{change} + batches of 32": ("ddad:blocks", (*settings, *SMALL)) for change, settings in CHANGES.items()},
    "blocks - mixup + batches of 32": ("ddad:blocks", ("replay.mixup=false", *SMALL)),
}
"""Method and settings of a row's name."""


def possible(pair: str) -> list[str]:
    """The rows of a pair, where none are named."""
    if pair == "camvid-parts":
        return ["fresh", "fresh + hints", "blocks - features", "dfad", "dafl", "dfq", "kd"]
    without = {"kd"} | ({name for name in METHODS if "blocks" in name} if pair == "fashion-parts" else set())
    return [name for name in METHODS if name not in without]


STUDY = Study(
    PAIRS,
    METHODS,
    possible,
    INTRODUCTION,
    Path(__file__).with_name("RESULTS-parts.md"),
    methods.RESULTS / "parts.png",
)

if __name__ == "__main__":
    STUDY.main("benchmarks.parts", __doc__)
