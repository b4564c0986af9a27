"""Our round against a plain loop, the way the public scripts of this field are written; alternating, in one run.

    python -m benchmarks.step                                   # every pair, sizes that two CPU cores can do
    python -m benchmarks.step --pairs resnet56-resnet20 --compile
    python -m benchmarks.step --device cuda --batch 256 --variants eager compile bf16 bf16-compile

The plain loop is eager, fp32 and contiguous; the generator makes the student's images with a graph that is thrown away,
and in the generator's turn the weights of teacher and student collect gradients that nobody uses. `frozen` is the same
loop with `requires_grad_(False)` on the teacher, and on the student in the generator's turn. All begin from the same
weights and learn from the same latents; fp32 losses have to agree to 1e-4 in every round, bf16 ones in the first. On a
GPU, whose convolutions round to TF32, fp64 losses have to agree to 1e-4 in ten rounds before, fp32 ones as bf16 ones.

Every variant plays round i before any plays round i + 1, so that whatever else the machine does hits all of them; the
first round warms up, and compiles, and is not counted. A ratio is of the same round's seconds; printed are the median
and the quartiles over rounds. Rows go to benchmarks/results/step-DEVICE.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.methods import RESULTS, add, machine
from harness import config, methods
from harness.algorithm.latents import latents
from harness.compare.markdown import pipe_table
from harness.config import Config
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.training.machine import Machine

Round = Callable[[int], list[Tensor]]
"""Plays a round and returns the totals of its turns; the device may still be computing."""

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}
"""How far the total of a turn may be from the plain loop's, as a share of it."""

BASE: Overlay = {
    "task": "classification",
    "classes": 10,
    "input": {"size": 32},
    "teacher": {"checkpoint": "untrained"},
    # Low and constant: at .1 rounding alone tears the curves apart within ten rounds. The time is the same.
    "student": {"lr": 1e-4, "schedule": "constant"},
    "generator": {"lr": 1e-6, "schedule": "constant"},
}


def _pair(teacher: str, student: str, batch_size: int, over: Overlay | None = None) -> Overlay:
    networks = {"teacher": {"network": teacher}, "student": {"network": student}, "batch_size": batch_size}
    return merge(merge(BASE, networks), over or {})


_DENSE: Overlay = {
    "task": "segmentation",
    "classes": 11,
    "input": {"size": 128},
    "adversarial_transform": "log1p",
    "generator": {"network": "dcgan"},
}

PAIRS: dict[str, Overlay] = {
    "digits": _pair(
        "cnn32", "cnn12", 128,
        {"input": {"size": 8}, "teacher": {"channels": "gray"}, "generator": {"latent_size": 64, "width": 32}},
    ),
    "resnet56-resnet20": _pair("resnet56", "resnet20", 16),
    "resnet34-resnet18": _pair("resnet34", "resnet18", 4),
    "wrn40_2-wrn16_1": _pair("wrn40_2", "wrn16_1", 16),
    "deeplabv3plus": _pair("smp:DeepLabV3Plus/resnet50", "smp:DeepLabV3Plus/mobilenet_v2", 4, _DENSE),
    "deeplabv3": _pair("torchvision:deeplabv3_resnet50", "torchvision:deeplabv3_mobilenet_v3_large", 4, _DENSE),
}  # fmt: skip
"""Networks and the batch of a CPU; `deeplabv3` stands in where segmentation-models-pytorch is not installed."""

POOLED = ("deeplabv3plus", "deeplabv3")
"""Pairs whose losses are compared in fp64, and in fp32 as bf16 is: their batch norm over one pooled pixel an image has
variances near 0, by which it makes thousandths of fp32's rounding. On a GPU all are: its convolutions round to TF32."""

CHECKED = 10
"""Rounds in which losses are compared in fp64 on a GPU; on a CPU, where it is slow, one."""

PRODUCTS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
TF32 = (True, True)

VARIANTS: dict[str, Overlay] = {
    "eager": {},
    "compile": {"speed": {"compile": True}},
    "graphs": {"speed": {"compile": True, "cuda_graphs": True}},
    "tf32": {"speed": {"tf32": True}},
    "bf16": {"precision": "bf16"},
    "bf16-compile": {"precision": "bf16", "speed": {"compile": True}},
    "bf16-graphs": {"precision": "bf16", "speed": {"compile": True, "cuda_graphs": True}},
}
"""Our round, by what is switched on."""


def ours(settings: Config) -> Round:
    """The harness's round."""
    built = Machine(settings, Runtime(settings), _turns(settings), _quiet(roles.teacher(settings)))
    _quiet(built.student.module)

    def play(index: int) -> list[Tensor]:
        return [built.play(index, turn).total.detach() for turn in range(len(built.turns))]

    return play


def plain(settings: Config, frozen: bool, device: torch.device) -> Round:
    """The same round as a script writes it; `frozen`: what does not learn collects no gradients."""
    dtype = torch.float64 if settings.precision == "fp64" else torch.float32
    teacher = _quiet(roles.teacher(settings)).to(device, dtype).eval()
    student = _quiet(roles.student(settings)).to(device, dtype).train()
    generator = roles.generator(settings).to(device, dtype).train()
    student_optimizer = torch.optim.SGD(student.parameters(), settings.student.lr, 0.9, weight_decay=5e-4)
    generator_optimizer = torch.optim.Adam(generator.parameters(), settings.generator.lr)
    distances: list[Tensor] = []

    def judge(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
        x = inputs[0]
        mean, var = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1, unbiased=False)
        distances.append((layer.running_mean - mean).norm() + (layer.running_var - var).norm())

    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_pre_hook(judge)
    if frozen:
        teacher.requires_grad_(False)

    def noise(index: int, turn: int) -> Tensor:
        rows, size = range(settings.batch_size), settings.generator.latent_size
        return latents(rows, settings.batch_size, size, settings.seed, "latents", index, turn).to(device, dtype)

    def play(index: int) -> list[Tensor]:
        totals = []
        for turn in range(settings.student_steps):
            fake = generator(noise(index, turn)).detach()
            distances.clear()
            loss = (teacher(fake).detach() - student(fake)).abs().mean()
            student_optimizer.zero_grad()
            loss.backward()
            student_optimizer.step()
            totals.append(loss.detach())
        if frozen:
            student.requires_grad_(False)
        fake = generator(noise(index, settings.student_steps))
        distances.clear()
        apart = (teacher(fake) - student(fake)).abs().mean()
        loss = torch.stack(distances).sum() - (apart if settings.adversarial_transform == "identity" else apart.log1p())
        generator_optimizer.zero_grad()
        loss.backward()
        generator_optimizer.step()
        if frozen:
            student.requires_grad_(True)
        return [*totals, loss.detach()]

    return play


def measure(pair: str, batch_size: int | None, variants: Sequence[str], num_rounds: int) -> list[dict[str, Any]]:
    """A row for each of plain, frozen and our variants; AssertionError where losses are apart."""
    settings = config.build(merge(PAIRS[pair], {"batch_size": batch_size} if batch_size else {}))
    device = Runtime(settings).device
    rough = pair in POOLED or device.type == "cuda"
    if rough:
        exact = config.build(merge(config.to_dict(settings), {"precision": "fp64"}))
        count = CHECKED if device.type == "cuda" else 1
        both = [
            torch.stack([total for index in range(count) for total in play(index)]).cpu()
            for play in (plain(exact, True, device), ours(exact))
        ]
        torch.testing.assert_close(*both, rtol=TOLERANCE["fp32"], atol=0.0)
    usual = products()
    try:
        seconds, apart = _race(pair, settings, variants, num_rounds, device, rough, usual)
    finally:
        multiply(usual)
    return [
        {
            "pair": pair, "variant": name, "batch_size": settings.batch_size, "rounds": num_rounds,
            "seconds": statistics.median(times), "apart": apart[name],
            **{f"of_{base}": _spread(seconds[base], times) for base in ("plain", "frozen")},
            "memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
            **machine(),
        }
        for name, times in seconds.items()
    ]  # fmt: skip


def _race(
    pair: str, settings: Config, variants: Sequence[str], num_rounds: int, device: torch.device, rough: bool,
    usual: Sequence[bool],
) -> tuple[dict[str, list[float]], dict[str, float]]:  # fmt: skip
    """Seconds of every round, and how far losses were apart, by loop; `rough`: fp32 ones are compared as bf16 ones."""
    loops = {"plain": plain(settings, False, device), "frozen": plain(settings, True, device)}
    chosen = {name: config.build(merge(config.to_dict(settings), VARIANTS[name])) for name in variants}
    loops |= {name: ours(copy.deepcopy(each)) for name, each in chosen.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    apart = dict.fromkeys(loops, 0.0)
    for index in range(num_rounds + 1):
        totals: dict[str, Tensor] = {}
        for name, play in loops.items():
            multiply(TF32 if name in chosen and chosen[name].speed.tf32 else usual)
            _wait(device)
            began = time.perf_counter()
            played = play(index)
            _wait(device)
            if index:
                seconds[name].append(time.perf_counter() - began)
            totals[name] = torch.stack([total.double() for total in played]).cpu()
            precision = chosen[name].precision if name in chosen else "fp32"
            precision = "bf16" if rough else precision
            if precision == "fp32" or index == 0:
                difference = float(((totals[name] / totals["plain"]) - 1).abs().max())
                apart[name] = max(apart[name], difference)
                assert difference <= TOLERANCE[precision], f"{pair}, {name}, round {index}: apart by {difference:.1e}"
    return seconds, apart


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown; a ratio above 1 is faster than what it is compared with."""
    header = ["pair", "batch", "loop", "seconds a round", "plain / it", "frozen / it", "losses apart"]
    lines = []
    for row in rows:
        ratios = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*row[f"of_{base}"]) for base in ("plain", "frozen")]
        words = [row["pair"], str(row["batch_size"]), row["variant"]]
        lines.append([*words, f"{row['seconds']:.4g}", *ratios, f"{row['apart']:.0e}"])
    return "\n".join(pipe_table(header, lines, num_text=3))


def products() -> list[bool]:
    """Whether fp32 products and convolutions are in TF32 on a GPU: what `speed.tf32` sets for the process."""
    return [bool(kind.allow_tf32) for kind in PRODUCTS]


def multiply(wanted: Sequence[bool]) -> None:
    """Sets what `products` gave."""
    for kind, value in zip(PRODUCTS, wanted, strict=True):
        if kind.allow_tf32 != value:
            kind.allow_tf32 = value


def available(pair: str) -> bool:
    """Whether the libraries of a pair's networks are installed."""
    return "smp:" not in str(PAIRS[pair]) or importlib.util.find_spec("segmentation_models_pytorch") is not None


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [pair for pair in PAIRS if pair != "deeplabv3"]
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=usual)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["eager"])
    parser.add_argument("--compile", action="store_true", help="the variant `compile` too")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1, help="each from networks built anew")
    parser.add_argument("--batch", type=int, help="images a turn; default as the pair says")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="the file that rows are added to")
    given = parser.parse_args()
    if (given.device == "cuda") != torch.cuda.is_available():
        sys.exit(
            f"benchmarks.step: --device {given.device}: this machine computes on the other; hide its GPU or find one"
        )
    found = []
    for pair in given.pairs:
        if not available(pair):
            print(f"{pair}: segmentation-models-pytorch is not installed, left out", file=sys.stderr)
            continue
        for _ in range(given.repeats):
            rows = measure(pair, given.batch, [*given.variants, *["compile"] * given.compile], given.rounds)
            for row in rows:
                add(given.output or RESULTS / f"step-{given.device}.jsonl", row)
            print(table(rows), flush=True)
            found += rows
    print(f"\n{table(found)}\n{torch.get_num_threads()} threads, torch {torch.__version__}, {machine()['date']}")


def _turns(settings: Config) -> list[methods.Turn]:
    return methods.METHODS[settings.method].turns(settings)


def _quiet(module: nn.Module) -> nn.Module:
    """Without dropout, which would draw other numbers in each memory format."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    return module


def _spread(base: Sequence[float], times: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the ratios round by round."""
    ratios = [one / other for one, other in zip(base, times, strict=True)]
    return statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1 else ratios * 3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
