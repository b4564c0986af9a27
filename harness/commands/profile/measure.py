"""`ddad profile`: what a round computes and moves, how long it takes, and how near that is to this machine's limit.

A part of a round is one network in one role, forward or backward. Operations and bytes are counted as the part runs
once, uncompiled: operations by torch's flop counter (2 for a multiply-add; convolutions and matrix products alone),
bytes as the sum of what each operation reads and writes, so that whatever fuses operations may move less. Times are
medians of the part alone, as the run is set, so `speed.*` and `precision` show; how often it occurs in a round is seen
in a real one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from harness import methods, resolve
from harness.algorithm.turns import Answer
from harness.commands.profile import timing
from harness.commands.profile.counting import count
from harness.config import Config, Distributed, image_shape
from harness.distributed.runtime import Runtime
from harness.networks import roles, sources
from harness.training.machine import Machine
from harness.training.players import Player

Step = Literal["answer", "forward", "backward", "update"]
"""An answer is a forward pass of which nothing is kept for gradients."""

Role = tuple[str, bool, Step]
"""(network, whether it is its own turn, step)."""


Call = Callable[[Tensor], Any]
"""A network as a turn calls it: images or latents -> Tensor or Answer."""


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
    """The machine of a run on this process. Random weights replace an absent teacher."""
    present = sources.present(str(config.teacher.checkpoint))
    if not present:
        warn(f"{config.teacher.checkpoint} is not there yet: profiled with random weights")
    teacher = roles.teacher(config if present else resolve.untrained(config), warn)
    one_process = dataclasses.replace(config, distributed=Distributed())
    turns = methods.find(config.method, config.variant)[0].turns(config)
    return Machine(one_process, Runtime(one_process), turns, teacher)


def play(built: Machine, index: int) -> None:
    """Plays the round `index` and waits until the device has finished it."""
    for turn_index in range(len(built.turns)):
        for part in range(built.config.micro_batches):
            built.play(index, turn_index, part)
    built.health.verify()


def measure(built: Machine) -> Profile:
    """The profile of a machine. Its networks are trained meanwhile."""
    device = built.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    play(built, 0)
    turns = _turns(built)
    round_seconds = timing.seconds(lambda _: play(built, 1), device)
    memory = timing.peak_memory(device)
    counts = Counter(step for turn in turns for step in turn)
    parts = [part for role in dict.fromkeys((name, learns) for name, learns, _ in counts) for part in
             _parts(built, *role, counts)]  # fmt: skip
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    flops, moved = timing.peaks(device, built.runtime.dtype, built.config.precision)
    return Profile(built.config, parts, turns, round_seconds, flops, moved, memory, name)


def trace(built: Machine, path: Path) -> None:
    """Writes a round's trace by torch's profiler, for chrome://tracing or ui.perfetto.dev."""
    from torch.profiler import ProfilerActivity, profile  # the module of that name here is another

    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (built.runtime.device.type == "cuda")
    with profile(activities=kinds) as seen:
        play(built, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(path))


def _modules(built: Machine) -> dict[str, nn.Module]:
    found = {name: player.module for name, player in built.players.items()}
    return found | ({"teacher": built.teacher.module} if built.teacher else {})


def _turns(built: Machine) -> list[list[Role]]:
    """The parts of each turn of a round, as recorded while one is played.

    A forward pass that keeps a graph is followed by a backward pass.
    """
    calls: list[Role] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            own = name in built.players and any(p.requires_grad for p in built.players[name].parameters)
            calls.append((name, own, "forward" if torch.is_grad_enabled() else "answer"))

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in _modules(built).items()]
    turns = []
    with torch.compiler.set_stance("force_eager"):
        for turn_index, turn in enumerate(built.turns):
            calls.clear()
            learner = "generator" if turn.kind == "generator" else "student"
            before = built.players[learner].updates
            for part in range(built.config.micro_batches):
                built.play(1, turn_index, part)
            backward: list[Role] = [(name, own, "backward") for name, own, step in reversed(calls) if step == "forward"]
            updates: list[Role] = [(learner, True, "update")] * (built.players[learner].updates - before)
            turns.append([*calls, *backward, *updates])
    for handle in handles:
        handle.remove()
    return turns


def _parts(built: Machine, name: str, learns: bool, counts: Counter[Role]) -> Iterator[Part]:
    """The parts of a network in one role: with and without a graph, backward, update."""
    config, device = built.config, built.runtime.device
    player = built.players.get(name)
    steps = [step for step in get_args(Step) if counts[name, learns, step]]
    call, call_without_graph = _calls(built, player, learns)
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
            call_without_graph(x)

    with player.turn() if player and learns else nullcontext():
        for step in steps:
            if step in ("answer", "forward"):
                work: Callable[[None], object] = answer if step == "answer" else forward
                (flop, moved), seconds = count(work), timing.seconds(work, device)
            elif step == "backward":
                flop, moved = count(_backward, forward)
                seconds = timing.seconds(_backward, device, forward)
            else:
                assert player is not None
                flop, moved = 0, _update_bytes(player)
                seconds = timing.seconds(partial(_update, player), device, lambda: _backward(forward()))
            yield Part(name, learns, step, counts[name, learns, step], flop, moved, seconds)
        if player:
            for parameter in player.parameters:
                parameter.grad = None


def _calls(built: Machine, player: Player | None, learns: bool) -> tuple[Call, Call]:
    """How the turns call a network, with and without a graph; `player` is None for the teacher."""
    if player is None:
        assert built.teacher
        return built.teacher.judge, built.teacher.answer
    call = player if learns else player.frozen_forward
    return call, call


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
