"""What the ranks of the equality tests do: runs of a few rounds from a configuration, their states saved by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from harness import UserError, distill, methods
from harness import config as config_module
from harness.algorithm import generators
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime, leave
from harness.networks import roles
from harness.training import checkpoint, evaluate
from harness.training.machine import Machine

SMALL: Overlay = {
    "task": "classification",
    "classes": 4,
    "rounds": 20,
    "batch_size": 14,
    "student_steps": 2,
    "teacher": {"network": "cnn8", "checkpoint": "untrained"},
    "student": {"network": "cnn4"},
    "generator": {"latent_size": 8, "width": 8},
    "input": {"size": 8},
    "precision": "fp64",
    "weights": {"class_balance": 0.3, "activation": 0.2, "one_hot": 0.1, "tv": 0.01},
    "adversarial_transform": "log1p",
}
"""Terms of every kind; a batch that 4 ranks cannot share evenly."""

STUDENT = f"{Path(__file__).with_name('bare_networks.py')}:student"
"""A student without batch norm."""

BARE: Overlay = {"student": {"network": STUDENT}, "generator": {"network": "bare"}, "sync_batch_norm": False}
"""Nothing that is trained holds a batch norm."""

PRUNED: Overlay = {"student": {"network": "pruned", "arguments": {"macs": 0.5}}}
"""A student cut out of the teacher, which starts with what weights are left."""


def _method(name: str) -> dict[str, Any]:
    """A method's own settings over those of the cases, for fewer turns."""
    values = methods.METHODS[name].variants["paper"]
    return merge(values, {"method": name, "rounds": 10, "student_steps": min(values["student_steps"], 3)})


def _inverting(name: str) -> dict[str, Any]:
    """A method that makes each batch by many steps: fewer of them."""
    over = {"rounds": 5, "inversion": {"steps": 4, "rounds": 1}, "replay": {"memory": 0.02}}
    return merge(_method(name), over)


CASES: dict[str, Overlay] = {
    "sgd": {},
    "adam": {"student": {"optimizer": "adam", "lr": 1e-3}},
    "clipped": {"student": {"clip": 0.1}, "generator": {"clip": 0.01}},
    "kl moments": {"batch_norm_form": "kl", "discrepancy": "kl", "generator": {"optimizer": "sgd", "lr": 0.01}},
    "bare, sgd": BARE,
    "bare, adam": merge(BARE, {"student": {"optimizer": "adam", "lr": 1e-3}}),
    "micro-batches": {"micro_batches": 2, "batch_size": 16},
    "dafl": _method("dafl"),
    "zskt": _method("zskt"),
    "zskt, micro-batches": merge(_method("zskt"), {"micro_batches": 2, "batch_size": 16}),
    "dfq": _method("dfq"),
    "deepinversion": _inverting("deepinversion"),
    "cmi, with attention": merge(
        _inverting("cmi"), {"inversion": {"bank": 20}, "student": {"attention": 100.0}, "batch_size": 13}
    ),
    "fast, micro-batches": merge(_inverting("fast"), {"micro_batches": 2, "batch_size": 16}),
    "nayer, micro-batches": merge(
        _inverting("nayer"), {"micro_batches": 2, "batch_size": 18, "generator": {"restart": 2}}
    ),
    "generator begins anew": {"generator_steps": 2, "generator": {"restart": 7}, "batch_size": 13},
    "shared latents": {
        "generator_steps": 2,
        "shared_latents": True,
        "inversion": {"views": "crop"},
        "student_steps": 3,
        "replay": {"share": 0.4, "memory": 0.05},
        "batch_size": 13,
    },
    "averaged generator": {"generator": {"average": 0.1}},
    "replay": {"student_steps": 3, "replay": {"share": 0.4, "memory": 0.05}},
    "mixup": {
        "student_steps": 3,
        "replay": {"share": 0.7, "memory": 0.05, "augment": True, "mixup": True},
        "batch_size": 13,
    },
    "averaged": {"student": {"average": 0.1}},
    "hints": {"student": {"hints": 2.0}, "batch_size": 13},
    "classes": {"weights": {"target": 1.0}, "batch_size": 13},
    "pruned": PRUNED,
    "inherited": {"student": {"network": "cnn8", "start": "teacher"}},
    "replay, micro-batches": {
        "student_steps": 3,
        "replay": {"share": 0.7, "memory": 0.05, "storage": "fp16", "place": "device"},
        "micro_batches": 2,
        "batch_size": 16,
    },
}


DIGITS: Overlay = {
    "task": "classification",
    "classes": 10,
    "teacher": {"network": "cnn8", "checkpoint": "untrained", "channels": "gray"},
    "student": {"network": "cnn4"},
    "input": {"size": 8},
    "data": {"name": "digits"},
    "batch_size": 50,
}
"""An evaluation: 360 images, which neither 50 nor 4 ranks divide evenly into batches."""


class Bare(nn.Module):
    """A generator without batch norm."""

    multiple = 4
    usual_width = 8

    def __init__(self, latent_size: int, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.shape = shape
        self.linear = nn.Linear(latent_size, shape[0] * shape[1] * shape[2])

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.linear(z).view(-1, *self.shape).tanh()
        return images


generators.GENERATORS["bare"] = Bare  # type: ignore[assignment]  # one more line of the dictionary, for the tests


def build(over: Overlay) -> Machine:
    """The machine of a case on the processes there are."""
    config = config_module.build(merge(SMALL, over))
    turns = methods.METHODS[config.method].turns(config)
    return Machine(config, Runtime(config), turns, roles.teacher(config))


def play(machine: Machine, start: int = 0, rounds: int | None = None) -> None:
    """Rounds of a machine, all that are left unless `rounds` are named."""
    for index in range(start, machine.config.rounds if rounds is None else start + rounds):
        for place in range(len(machine.turns)):
            for part in range(machine.config.micro_batches):
                machine.play(index, place, part)


def state(machine: Machine) -> dict[str, Tensor]:
    """Weights, buffers and moments by name, and what is shown of a pool."""
    found = {
        f"{name}/{key}": value
        for name, player in machine.players.items()
        for key, value in (player.engine.weights() | player.engine.moments()).items()
    }
    if machine.inversion:
        found["generated"] = machine.networks().generate(16, "samples").cpu()
    average = machine.student.average.tensors() if machine.student.average else {}
    return found | {f"average/{key}": value for key, value in average.items()}


def play_cases(out: Path, cases: Mapping[str, Overlay]) -> None:
    """For `ranks.run`: every case to its end; rank 0 saves its state, every rank the hash of its own."""
    for case, over in cases.items():
        machine = build(over)
        play(machine)
        found = state(machine)
        rank = int(os.environ.get("RANK", "0"))
        (out / f"{case}.{rank}.sha256").write_text(hashlib.sha256(save(found)).hexdigest())
        if rank == 0:
            save_file(found, out / f"{case}.safetensors")
    leave()


def evaluate_digits(out: Path) -> None:
    """For `ranks.run`: scores of untrained networks on the digits' test images, and what one image counts."""
    config = config_module.build(merge(DIGITS, {}))
    runtime = Runtime(config)
    networks = [runtime.prepare_frozen(build(config)) for build in (roles.teacher, roles.student)]
    scores = evaluate.measure(config, networks[0], networks[1], None, runtime)
    assert scores.confusion is not None
    found = [scores.agreement, scores.teacher, scores.student, scores.confusion.tolist()]
    (out / f"{runtime.rank}.json").write_text(json.dumps(found))
    leave()


def resumed(out: Path, start: int, over: Overlay) -> None:
    """For `ranks.run`: ten rounds from `start` on of a run whose checkpoints are in `out`."""
    machine = build(over)
    state_before = checkpoint.restore(out, machine.players, machine.runtime.first, machine.sources.take)
    assert (state_before or {"round": 0})["round"] == start
    play(machine, start, 10)
    kept = machine.sources.kept(start + 10)
    checkpoint.store(out, machine.players, {"round": start + 10}, 9, machine.runtime.first, kept)
    leave()


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference between two states of the same names."""
    assert a.keys() == b.keys()
    return max(torch.max(torch.abs(a[key].double() - b[key].double())).item() for key in a)


def given_modules(place: Path, name: str, seeds: tuple[int, ...]) -> None:
    """A run of modules in memory, which each rank draws from a seed of its own; a refusal is written to a file."""
    rank = int(os.environ["RANK"])
    torch.manual_seed(seeds[rank])
    modules = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4)) for _ in range(2)]
    settings = {
        "recipe": "classification", "classes": 4, "input": {"size": 8}, "rounds": 1, "batch_size": 8,
        "pictures": False, "tracking": {"uri": "none"},
    }  # fmt: skip
    try:
        distill(settings, place / name, teacher=modules[0], student=modules[1])
    except UserError as error:
        (place / f"{name}-{rank}.refused").write_text(str(error))
    leave()
