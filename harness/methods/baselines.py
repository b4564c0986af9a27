"""The settings of the data-free baselines, by variant: weights and schedules of each method's public code.

`paper` sets losses, turns, optimisers and generator; batch, latent size, rounds and widths come from the recipe. A
variant named after a data set also sets these, as published. docs/method.md lists the differences from the public code
and the reasons.
"""

from __future__ import annotations

import math
from typing import Any

from harness.config.parse import Overlay, merge

Variants = dict[str, Overlay]


def _dafl(one_hot: float, balance: float, activation: float) -> Overlay:
    """DAFL (arXiv 1904.01186): no student in the generator's loss; `balance` weighs sum_c p_c log10 p_c."""
    return {
        "discrepancy": "kl",
        "temperature": 1.0,
        "student_steps": 1,
        "weights": {
            "adversarial": 0.0,
            "batch_norm": 0.0,
            "one_hot": one_hot,
            "class_balance": balance / math.log(10),  # this code uses natural logarithms: log10 p = ln p / ln 10
            "activation": activation,
        },
        "student": {"optimizer": "sgd", "lr": 0.1, "schedule": "multistep", "milestones": [0.4, 0.8]},
        "generator": {"network": "upsample", "optimizer": "adam", "lr": 0.02, "schedule": "constant"},
    }


_DAFL_SCALE: Overlay = {"rounds": 240_000, "batch_size": 1024, "generator": {"latent_size": 1000}}
"""2000 epochs of 120 rounds."""

DAFL: Variants = {
    "paper": _dafl(0.05, 5.0, 0.01),
    "cifar10": merge(_dafl(0.05, 5.0, 0.01), _DAFL_SCALE),
    "cifar100": merge(_dafl(0.5, 20.0, 0.1), _DAFL_SCALE),
}


def _zskt(attention: float) -> dict[str, Any]:
    """ZSKT (arXiv 1905.09768): the generator maximises only the discrepancy; the student has attention transfer."""
    adam = {"optimizer": "adam", "schedule": "cosine", "clip": 5.0}
    return {
        "discrepancy": "kl",
        "temperature": 1.0,
        "student_steps": 10,
        "weights": {"adversarial": 1.0, "batch_norm": 0.0},
        "student": {**adam, "lr": 2e-3, "weight_decay": 0.0, "attention": attention},
        "generator": {**adam, "lr": 1e-3, "network": "affine"},
    }


_ZSKT_SCALE: Overlay = {"rounds": 80_000, "batch_size": 128, "generator": {"latent_size": 100}}

ZSKT: Variants = {
    "paper": _zskt(250.0),
    # The public code's KL is a mean over classes too: with a sum over K classes its 250 corresponds to 250 K.
    "cifar10": merge(_zskt(250.0 * 10), _ZSKT_SCALE),
    "cifar100": merge(_zskt(250.0 * 100), _ZSKT_SCALE),
}

_DFQ: Overlay = {
    "discrepancy": "kl",
    "temperature": 1.0,
    "student_steps": 10,
    "batch_norm_form": "norm",
    "weights": {"adversarial": 1.0, "batch_norm": 1.0, "class_balance": 20.0, "one_hot": 1.0},
    "student": {"optimizer": "sgd", "lr": 0.1, "nesterov": True, "schedule": "cosine"},
    "generator": {
        "network": "pixels", "optimizer": "adam", "lr": 1e-3, "betas": [0.5, 0.999], "schedule": "cosine",
    },
}  # fmt: skip
"""DFQ (arXiv 2005.04136) with the weights of its public script."""

DFQ: Variants = {
    "paper": _DFQ,
    # The forms in the paper: KL of Gaussians, and the mean entropy of the predictions, each of weight 1.
    "formula": merge(
        _DFQ, {"batch_norm_form": "kl", "weights": {"class_balance": 1.0, "one_hot": 0.0, "sample_entropy": 1.0}}
    ),
    "cifar10": merge(_DFQ, {"rounds": 8_000, "batch_size": 256, "generator": {"latent_size": 256}}),
}

_STUDENT: Overlay = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"}

_DEEPINVERSION: Overlay = {
    "student_steps": 50,
    "discrepancy": "js",
    "student_discrepancy": "kl",
    "temperature": 3.0,
    "weights": {"adversarial": 10.0, "batch_norm": 10.0, "target": 1.0, "tv": 2.5e-5},
    "student": _STUDENT,
    "generator": {"optimizer": "adam", "lr": 0.1, "schedule": "constant"},
    "inversion": {"steps": 2000, "rounds": 220, "views": "jitter"},
}
"""DeepInversion (arXiv 1912.08795) in its adaptive form, which has an adversarial term."""

_DEEPINVERSION_SCALE: Overlay = {
    "rounds": 220,
    "student_steps": 400,
    "batch_size": 256,
    # The public code takes one norm over the batch: for 256 images, 16 times the mean of the norms of each image.
    "weights": {"tv": 16 * 2.5e-5},
    "replay": {"memory": 512.0},
}

DEEPINVERSION: Variants = {
    "paper": _DEEPINVERSION,
    "plain": merge(_DEEPINVERSION, {"weights": {"adversarial": 0.0}}),
    "cifar10": merge(_DEEPINVERSION, _DEEPINVERSION_SCALE),
    "cifar100": merge(_DEEPINVERSION, _DEEPINVERSION_SCALE),
}


def _agreeing(adversarial: float) -> dict[str, Any]:
    """Common settings of CMI, Fast, NAYER: the adversarial term counts only agreed predictions; students see crops."""
    return {
        "student_steps": 50,
        "discrepancy": "kl",
        "temperature": 1.0,
        "student_temperature": 20.0,
        "adversarial_where": "agreed",
        "weights": {"adversarial": adversarial},
        "student": _STUDENT,
        "generator": {"network": "pixels", "optimizer": "adam", "betas": [0.5, 0.999], "schedule": "constant"},
        "inversion": {"views": "crop"},
        "replay": {"augment": True},
    }


_CMI: Overlay = merge(
    _agreeing(0.5),
    {
        "adversarial_after": 0.1,
        "weights": {"batch_norm": 1.0, "target": 0.5, "contrastive": 0.8},
        "generator": {"lr": 1e-3},
        "inversion": {"steps": 200, "rounds": 40},
    },
)
"""CMI (arXiv 2105.08584)."""

_CMI_SCALE: Overlay = {
    "rounds": 40,
    "student_steps": 2000,
    "batch_size": 256,
    "generator": {"latent_size": 256},
    "replay": {"memory": 512.0},
}

CMI: Variants = {
    "paper": _CMI,
    "cifar10": merge(_CMI, _CMI_SCALE),
    "cifar100": merge(_CMI, _CMI_SCALE),
}


def _fast(adversarial: float, target: float) -> Overlay:
    """Fast (arXiv 2112.15278), with ten steps a batch."""
    return merge(
        _agreeing(adversarial),
        {
            "student_steps": 10,
            "adversarial_after": 20 / 220,
            "weights": {"batch_norm": 10.0, "target": target},
            "student": {"lr": 0.2},
            "generator": {"lr": 2e-3},
            "inversion": {"steps": 10, "latent_lr": 0.01, "momentum": 0.9},
        },
    )


_FAST_SCALE: Overlay = {**_CMI_SCALE, "rounds": 220, "student_steps": 400}

FAST: Variants = {
    "paper": _fast(1.33, 0.4),
    "cifar10": merge(_fast(1.33, 0.4), _FAST_SCALE),
    "cifar100": merge(_fast(1.0, 0.5), _FAST_SCALE),
}
"""`cifar10` has the published weights for wide residual networks, `cifar100` those for ResNet-34."""

_NAYER: Overlay = merge(
    _agreeing(1.33),
    {
        "adversarial_after": 0.25,  # the share of its batches that are made in the warm-up: 200 of 800
        "weights": {"batch_norm": 10.0, "target": 0.5},
        "student": {"lr": 0.2},
        "generator": {"lr": 4e-3, "restart": 20},
        "inversion": {"steps": 40, "momentum": 0.9},
    },
)
"""NAYER (arXiv 2310.00258)."""

_NAYER_SCALE: Overlay = {
    "rounds": 800,
    "student_steps": 150,
    "batch_size": 400,
    "generator": {"latent_size": 1000},
    "replay": {"memory": 1100.0},
}
"""300 epochs of 400 student updates and two batches, and 20 epochs of ten batches before them."""

NAYER: Variants = {
    "paper": _NAYER,
    "cifar10": merge(merge(_NAYER, _NAYER_SCALE), {"inversion": {"steps": 30}}),
    "cifar100": merge(_NAYER, _NAYER_SCALE),
}
