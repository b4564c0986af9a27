"""Every method by name, with its variants. A new method is one entry of METHODS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from harness.config import Config
from harness.config.parse import Overlay, merge
from harness.errors import UserError, nearest
from harness.methods import baselines
from harness.methods.rounds import (
    Turn,
    after_the_generator,
    alternating,
    dual,
    from_one_batch,
    inverting,
    on_real_data,
    supervised,
)


@dataclass(frozen=True)
class Method:
    """The turns of a round, and named settings."""

    turns: Callable[[Config], list[Turn]]
    variants: Mapping[str, Overlay] = field(default_factory=lambda: {"paper": {}})
    """Values by variant; they override the recipe's. Field defaults are DDAD's `paper`."""
    data_free: bool = True
    """Whether the method trains on no real data."""
    has_teacher: bool = True
    """Whether targets come from a teacher; else from labels."""


_SWIFT: Overlay = {
    "replay": {"share": 0.8},
    "student": {"lr": 0.2, "schedule": "constant", "average": 0.05},
}
"""DDAD with replay in four of five student turns, a constant learning rate and averaged student weights."""

_AIMED: Overlay = merge(_SWIFT, {"weights": {"batch_norm": 3.0, "target": 0.5, "class_balance": 1.4}})
"""`swift` with class-conditional latents and a higher weight of the batch-norm term."""

_FRESH: Overlay = merge(
    _SWIFT,
    {
        "replay": {"augment": True},
        "weights": {"batch_norm": 3.0},
        "generator": {"network": "pixels", "lr": 3e-3, "warmup": 60},
        "inversion": {"views": "crop"},
    },
)
"""`swift` with a generator whose images are pixels, which learns faster and, alone, before the first round. Crops of
images are what teacher and student see, of generated ones in its turns and of replayed ones."""

_SOFT: Overlay = merge(
    _FRESH,
    {
        "student_discrepancy": "kl",
        "student_temperature": 20.0,
        "weights": {"target": 0.5},
        "student": {"lr": 0.1, "schedule": "cosine", "average": 0.0},
        "generator": {"class_distance": 4.0},
    },
)
"""`fresh` for a classifier: the generator makes each image for a class, from latents of classes that are near to each
other, and the student learns the teacher's answers at temperature 20, at a learning rate that falls to 0."""

_BLOCKS: Overlay = merge(
    _FRESH,
    {
        "replay": {"mixup": True},
        "student": {"features": 10.0, "hints": 30.0, "clip": 5.0, "schedule": "cosine", "average": 0.0},
    },
)
"""`fresh` for a student that has blocks of the teacher's shapes. They and the last layers of each size are compared
with the teacher's, and the learning rate falls to 0."""

_HELD: Overlay = merge(
    _FRESH,
    {
        "rounds": 160,
        "shared_latents": True,
        "generator_steps": 20,
        "student_steps": 32,
        "replay": {"share": 31 / 32, "mixup": True},
        "generator": {"warmup": 4},
    },
)
"""`fresh` with a generator that improves one batch of images by 20 updates, which the student then learns from beside
31 batches of mixtures of earlier ones."""

_INHERITING: Overlay = {
    "student": {"lr": 0.02, "schedule": "cosine", "average": 0.0, "features": 100.0, "clip": 5.0},
}
"""For a student that starts from its teacher's weights, which a higher learning rate undoes."""

_WARM: Overlay = merge(merge(_HELD, _INHERITING), {"student": {"reconstruct": 6}})
"""`held` for a student that starts from its teacher's weights. Its blocks are compared with the teacher's. A pruned
student is first fitted to the teacher on images of a generator that was trained on the teacher's statistics."""

_NOISY: Overlay = merge(
    baselines.NAYER["paper"],
    {
        "discrepancy": "l1",
        "student_discrepancy": "kl",
        "student_temperature": 4.0,
        "weights": {"adversarial": 0.4, "batch_norm": 5.0},
        "generator": {"lr": 3e-3, "restart": 5},
        "inversion": {"source": "noisy", "steps": 20},
    },
)
"""For a classifier with fresh weights: batches of NAYER's noisy layers under DDAD's discriminators, the L1 distance
being the adversary's, in half of NAYER's steps a batch."""

_WARM_NOISY: Overlay = merge(_NOISY, _INHERITING)
"""`noisy` for a classifier that starts from its teacher's weights, with the student's settings of `warm`."""

_HINTED: Overlay = merge(
    baselines.NAYER["paper"],
    {"student_temperature": 4.0, "inversion": {"source": "noisy", "steps": 20}, "student": {"hints": 3.0}},
)
"""For a classifier with fresh weights, of whatever width: its feature maps are to determine the teacher's. Images are
made by NAYER's losses, in half of its steps a batch."""

_DDAD: dict[str, Overlay] = {
    "paper": {}, "swift": _SWIFT, "aimed": _AIMED, "fresh": _FRESH, "soft": _SOFT, "blocks": _BLOCKS,
    "held": _HELD, "noisy": _NOISY, "hinted": _HINTED, "warm": _WARM, "warm_noisy": _WARM_NOISY,
}  # fmt: skip

METHODS: dict[str, Method] = {
    "ddad": Method(dual, _DDAD),
    "dfad": Method(alternating, {"paper": {"weights": {"batch_norm": 0.0}}}),
    "dafl": Method(from_one_batch, baselines.DAFL),
    "zskt": Method(after_the_generator, baselines.ZSKT),
    "dfq": Method(alternating, baselines.DFQ),
    "deepinversion": Method(inverting("pixels"), baselines.DEEPINVERSION),
    "cmi": Method(inverting("fresh"), baselines.CMI),
    "fast": Method(inverting("meta"), baselines.FAST),
    "nayer": Method(inverting("noisy"), baselines.NAYER),
    "kd": Method(on_real_data, {"paper": {"discrepancy": "kl", "temperature": 4.0}}, data_free=False),
    "supervised": Method(supervised, data_free=False, has_teacher=False),
}
"""`supervised` is what `ddad teach` runs."""


def find(name: str, variant: str) -> tuple[Method, Overlay]:
    """A method and its variant's values; raises UserError with the nearest name if there is none."""
    if name not in METHODS:
        raise UserError(f"method={name!r}: no such method{nearest(name, METHODS)}")
    variants = METHODS[name].variants
    if variant not in variants:
        raise UserError(f"variant={variant!r}: {name} has no such variant{nearest(variant, variants)}")
    return METHODS[name], variants[variant]
