"""Networks whose answers are finite and whose gradients are not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.errors import Diverged
from harness.training.machine import Machine


class Undefined(nn.Module):
    """The identity; where it is `on`, it adds sqrt(0), whose gradient is inf * 0 = NaN."""

    on = False

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers."""
        return x + (x * 0).sum().sqrt() if self.on else x


def student(classes: int, channels: int) -> nn.Module:
    """[B, C, 8, 8] -> [B, K]; in layers whose parameters two processes cannot share evenly."""
    first = nn.Conv2d(channels, 5, 3, stride=2, bias=False)
    return nn.Sequential(first, nn.GroupNorm(1, 5), nn.Tanh(), nn.Flatten(), nn.Linear(45, classes), Undefined())


def teacher(classes: int, channels: int) -> nn.Module:
    """[B, C, 8, 8] -> [B, K], with a batch norm for the batch-norm term."""
    first = nn.Conv2d(channels, 4, 3, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, classes), Undefined())


STUDENT, TEACHER = f"{__file__}:student", f"{__file__}:teacher"


def skipped(machine: Machine, turn: int) -> list[str | bool]:
    """What a turn with such a gradient ends in after a good one: the message, and whether the player is as it was."""
    player = machine.players["generator" if machine.turns[turn].kind == "generator" else "student"]
    names = {name for name, _ in player.module.named_parameters()}

    def state() -> dict[str, Tensor]:
        weights = {name: value.clone() for name, value in player.engine.weights().items() if name in names}
        return weights | {name: value.clone() for name, value in player.engine.moments().items()}

    machine.play(0, turn)
    before, message = state(), ""
    teacher = [machine.teacher.module] if machine.teacher else []
    for module in [*teacher, *(player.module for player in machine.players.values())]:
        for layer in module.modules():
            if type(layer).__name__ == "Undefined":  # of another import of this file
                layer.on = True
    try:
        machine.play(1, turn)
    except Diverged as error:
        message = str(error)
    after = state()
    return [message, all(torch.equal(after[name], value) for name, value in before.items())]
