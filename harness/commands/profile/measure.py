"""`ddad profile`: what a round computes and moves, how long it takes, and how near that is to this machine's limit.

A part of a round is one network in one role, forward or backward. Operations and bytes are counted as the part runs
once, uncompiled: operations by torch's flop counter (2 for a multiply-add; convolutions and matrix products alone),
bytes as the sum of what each operation reads and writes, so that whatever fuses operations may move less. Times are
medians of the part alone, as the run is set, so `speed.*` and `precision` show; how often it occurs in a round is seen
in a real one.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness import methods, resolve
from harness.algorithm.turns import Answer
from harness.config import UNTRAINED, Config, Distributed, image_shape
from harness.distributed.runtime import Runtime
from harness.networks import roles
from harness.training.machine import Machine
from harness.training.players import Player

REPEATS = 5
"""Times that a part, or a round, is measured, after once to warm up; a long one less often."""

LONG = 20.0
"""Seconds after which a measurement ends with what it has."""

MATRIX = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices whose product is the machine's peak."""

COPY_MIB = {"cpu": 256, "cuda": 2048}
"""Size of the copy that is the machine's peak: far more than caches hold."""


Step = Literal["answer", "forward", "backward", "update"]
"""An answer is a forward pass of which nothing is kept for gradients."""

Role = tuple[str, bool, Step]
"""(network, whether it is its own turn, step)."""


@dataclass(frozen=True)
class Part:
    """One network in one role."""

    network: str
    learns: bool
    """Whether it is the network's own turn."""
    step: Step
    times: int
    """How often in a round."""
    flop: int
    """Floating-point operations of one."""
    bytes: int
    """Bytes read and written by one."""
    seconds: float
    """Of one."""


@dataclass(frozen=True)
class Profile:
    """What was found."""

    config: Config
    parts: list[Part]
    turns: list[list[Role]]
    """The parts of each turn of a round, in order."""
    round_seconds: float
    peak_flops: float
    """Operations a second of a large matrix product in the run's precision."""
    peak_bytes: float
    """Bytes a second, read and written, of a large copy."""
    memory: float
    """Peak bytes: of the device where it is a GPU, else of this process."""
    device: str

    @property
    def flop(self) -> float:
        """Operations of a round."""
        return sum(part.times * part.flop for part in self.parts)

    @property
    def moved(self) -> float:
        """Bytes of a round."""
        return sum(part.times * part.bytes for part in self.parts)


def machine(config: Config, warn: Callable[[str], None]) -> Machine:
    """The machine of a run on this process alone; a teacher that is absent has random weights."""
    present = config.teacher.checkpoint == UNTRAINED or Path(str(config.teacher.checkpoint)).exists()
    if not present:
        warn(f"{config.teacher.checkpoint} is not there yet: profiled with random weights")
    teacher = roles.teacher(config if present else resolve.untrained(config), warn)
    alone = dataclasses.replace(config, distributed=Distributed())
    turns = methods.find(config.method, config.variant)[0].turns(config)
    return Machine(alone, Runtime(alone), turns, teacher)


def play(built: Machine, index: int) -> None:
    """A round, to its end on the device."""
    for place in range(len(built.turns)):
        for part in range(built.config.micro_batches):
            built.play(index, place, part)
    built.health.verify()


def measure(built: Machine) -> Profile:
    """The profile of a machine; its networks are other ones afterwards."""
    device = built.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    play(built, 0)
    turns = _turns(built)
    round_seconds = _seconds(lambda _: play(built, 1), device)
    memory = peak_memory(device)
    counts = Counter(step for turn in turns for step in turn)
    parts = [part for role in dict.fromkeys((name, learns) for name, learns, _ in counts) for part in
             _parts(built, *role, counts)]  # fmt: skip
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    flops, moved = peaks(device, built.runtime.dtype, built.config.precision)
    return Profile(built.config, parts, turns, round_seconds, flops, moved, memory, name)


def trace(built: Machine, path: Path) -> None:
    """A round as torch's profiler sees it, for chrome://tracing or ui.perfetto.dev."""
    from torch.profiler import ProfilerActivity, profile  # the module of that name here is another

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (built.runtime.device.type == "cuda")
    with profile(activities=kinds) as seen:
        play(built, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(path))


def peak_memory(device: torch.device) -> float:
    """Bytes: of the device where it is a GPU, else of this process since it began."""
    import resource

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _modules(built: Machine) -> dict[str, nn.Module]:
    found = {name: player.module for name, player in built.players.items()}
    return found | ({"teacher": built.teacher.module} if built.teacher else {})


def _turns(built: Machine) -> list[list[Role]]:
    """What each turn of a round is made of, as seen in one; a role that gives gradients goes backward too."""
    calls: list[Role] = []

    def heard(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            own = name in built.players and any(p.requires_grad for p in built.players[name].parameters)
            calls.append((name, own, "forward" if torch.is_grad_enabled() else "answer"))

        return hook

    handles = [module.register_forward_hook(heard(name)) for name, module in _modules(built).items()]
    turns = []
    with torch.compiler.set_stance("force_eager"):
        for place, turn in enumerate(built.turns):
            calls.clear()
            for part in range(built.config.micro_batches):
                built.play(1, place, part)
            backward: list[Role] = [(name, own, "backward") for name, own, step in reversed(calls) if step == "forward"]
            learner = "generator" if turn.kind == "generator" else "student"
            turns.append([*calls, *backward, (learner, True, "update")])
    for handle in handles:
        handle.remove()
    return turns


def _parts(built: Machine, name: str, learns: bool, counts: Counter[Role]) -> Iterator[Part]:
    """The parts of a network in one role: with and without a graph, backward, update."""
    config, device = built.config, built.runtime.device
    player = built.players.get(name)
    steps = [step for step in get_args(Step) if counts[name, learns, step]]
    call: Callable[[Tensor], Any] = built.teacher if player is None else player if learns else player.frozen_forward  # type: ignore[assignment]
    size = config.batch_size // config.micro_batches
    if name == "generator":
        x = torch.randn(size, config.generator.latent_size, device=device, dtype=built.runtime.dtype)
    else:
        x = _images(built, size).requires_grad_(not learns)

    def forward(_: None = None) -> list[Tensor]:
        answer = call(x)
        if isinstance(answer, Answer):
            return [answer.logits, *(layer.sums for layer in answer.moments)]
        return [answer]

    def answer(_: None) -> None:
        with torch.no_grad():
            call(x)

    with player.turn() if player and learns else nullcontext():
        for step in steps:
            if step in ("answer", "forward"):
                work: Callable[[None], object] = answer if step == "answer" else forward
                (flop, moved), seconds = _count(work), _seconds(work, device)
            elif step == "backward":
                flop, moved = _count(_backward, forward)
                seconds = _seconds(_backward, device, forward)
            else:
                assert player is not None
                flop, moved = 0, _update_bytes(player)
                seconds = _seconds(partial(_update, player), device, lambda: _backward(forward()))
            yield Part(name, learns, step, counts[name, learns, step], flop, moved, seconds)
        if player:
            for parameter in player.parameters:
                parameter.grad = None


def _images(built: Machine, size: int) -> Tensor:
    """A batch of what networks take."""
    x = torch.randn(size, *image_shape(built.config), device=built.runtime.device, dtype=built.runtime.dtype)
    return x.to(memory_format=torch.channels_last)


def _backward(outputs: list[Tensor]) -> None:
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _update_bytes(player: Player) -> int:
    """Read: weight, gradient and moments; written: weight and moments."""
    numbers = sum(parameter.numel() * parameter.element_size() for parameter in player.parameters)
    moments = 2 if player.settings.optimizer == "adam" else 1
    return numbers * (3 + 2 * moments)


def _update(player: Player, gradients: None) -> None:
    player.engine.step(1e-6, torch.zeros((), device=player.parameters[0].device))


class _Bytes(TorchDispatchMode):
    """Adds up what every operation that makes something new reads and writes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def _count(work: Callable[[Any], object], first: Callable[[], Any] = lambda: None) -> tuple[int, int]:
    """(operations, bytes) of `work` on what `first` gives."""
    with torch.compiler.set_stance("force_eager"):
        given = first()
        with FlopCounterMode(display=False) as flops, _Bytes() as moved:
            work(given)
    return int(flops.get_total_flops()), moved.total


def _seconds(
    work: Callable[[Any], object],
    device: torch.device,
    first: Callable[[], Any] = lambda: None,
    middle: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Seconds of `work` on what `first` gives, to its end on the device: the median of a few, after one to warm up."""
    found: list[float] = []
    began = time.perf_counter()
    while len(found) <= REPEATS and (len(found) < 2 or time.perf_counter() - began < LONG):
        given = first()
        _wait(device)
        start = time.perf_counter()
        work(given)
        _wait(device)
        found.append(time.perf_counter() - start)
    return middle(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peaks(device: torch.device, dtype: torch.dtype, precision: str) -> tuple[float, float]:
    """(operations, bytes) a second of a large matrix product in the run's precision, and of a large copy: the best."""
    side = MATRIX[device.type]
    kind = torch.bfloat16 if precision == "bf16" else dtype
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    source = torch.randn(COPY_MIB[device.type] * 2**18, device=device)
    target = torch.empty_like(source)
    product = _seconds(lambda _: a @ b, device, middle=min)
    copy = _seconds(lambda _: target.copy_(source), device, middle=min)
    return 2 * side**3 / product, 2 * source.numel() * source.element_size() / copy
