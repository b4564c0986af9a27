"""Optimisers, schedules and clipping of a player; its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from harness.config import Optimizer
from harness.errors import Diverged, UserError
from harness.training import checkpoint
from harness.training.machine import Machine
from harness.training.players import scheduled_rate
from tests.distributed import slopes
from tests.unit.test_turns import build


def test_cosine_falls_from_the_rate_to_zero() -> None:
    rates = [scheduled_rate(Optimizer(lr=0.2), progress) for progress in (0, 0.25, 0.5, 1)]
    assert rates == pytest.approx([0.2, 0.1 * (1 + math.sqrt(0.5)), 0.1, 0])


def test_multistep_falls_at_its_milestones() -> None:
    settings = Optimizer(lr=1.0, schedule="multistep", milestones=[0.2, 0.4], gamma=0.1)
    assert [scheduled_rate(settings, p) for p in (0, 0.19, 0.2, 0.4, 0.9)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])
    assert scheduled_rate(Optimizer(lr=1.0, schedule="constant"), 0.9) == 1.0


def test_the_horizon_is_the_players_own_number_of_updates() -> None:
    built = build()
    assert built.generator is not None
    assert (built.student.num_updates, built.generator.num_updates) == (8, 4)
    for turn in range(3):
        built.play(0, turn)
    assert (built.student.updates, built.generator.updates) == (2, 1)
    (group,) = built.student.engine.optimizer.param_groups
    assert group["lr"] == pytest.approx(scheduled_rate(built.config.student, 1 / 8))


def test_clipping_bounds_the_step() -> None:
    over = {"student": {"clip": 1e-3, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "lr": 1.0}}
    built = build(over)
    before = [parameter.clone() for parameter in built.student.parameters]
    built.play(0, 0)
    moved = torch.stack([(a - b).norm() for a, b in zip(before, built.student.parameters, strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize(("turn", "player"), [(0, "student"), (2, "generator")])
def test_a_gradient_that_is_not_finite_stops_before_the_update(turn: int, player: str, clip: float) -> None:
    """The losses of the turn are finite: the message names the gradient, and no weight and no moment has changed."""
    over = {"student": {"network": slopes.STUDENT, "clip": clip}, "generator": {"clip": clip}}
    built = build(over)
    message = f"the gradient of {player} ({player}/gradient_norm) is not finite"
    assert slopes.skipped(built, turn) == [message, True]


def test_the_norm_is_that_before_clipping() -> None:
    free, clipped = build(), build({"student": {"clip": 1e-3}})
    for built in (free, clipped):
        built.student.engine.optimizer.register_step_pre_hook(
            lambda optimizer, *rest, built=built: gradients.update(
                {built: torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]])}
            )
        )
    gradients: dict[Machine, torch.Tensor] = {}
    for built in (free, clipped):
        built.play(0, 0)
        assert built.student.gradient_norm is not None
        assert built.student.gradient_norm.item() == pytest.approx(gradients[free].norm().item())
    assert gradients[clipped].norm().item() == pytest.approx(1e-3, rel=1e-3)


def play_round(built: Machine, index: int) -> None:
    for turn in range(len(built.turns)):
        built.play(index, turn)


def test_a_student_with_a_parameter_of_two_names_is_kept(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(
        "from torch import nn\n\n\ndef net(classes, channels):\n"
        "    first, second = nn.Linear(16, 16), nn.Linear(16, 16)\n    second.weight = first.weight\n"
        "    pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, 16))\n"
        "    return nn.Sequential(pool, first, second, nn.Linear(16, classes))\n"
    )
    over = {"student": {"network": f"{tmp_path / 'tied.py'}:net"}}
    first, second = build(over), build(over)
    play_round(first, 0)
    checkpoint.store(tmp_path / "kept", first.players, {"round": 1}, keep=1)
    checkpoint.restore(tmp_path / "kept", second.players)
    for built in (first, second):
        play_round(built, 1)
    one, other = (built.student.module.state_dict() for built in (first, second))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(other["1.weight"], other["2.weight"])


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    built = build()
    for index in range(1, 5):
        checkpoint.store(tmp_path, built.players, {"round": index}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"round-0000000{index}.safetensors" for index in (3, 4)]


def test_optimiser_state_goes_by_parameter_name(tmp_path: Path) -> None:
    built = build()
    play_round(built, 0)
    checkpoint.store(tmp_path, built.players, {"round": 1}, keep=1)
    keys = safetensors.torch.load_file(tmp_path / "round-00000001.safetensors").keys()
    parameters = {name for name, _ in built.student.module.named_parameters()}
    assert {f"student/optimizer/{name}/momentum_buffer" for name in parameters} <= keys
    assert "generator/optimizer/linear.weight/exp_avg_sq" in keys


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    built = build()
    checkpoint.store(tmp_path, built.players, {"round": 1}, keep=1)
    with torch.no_grad():
        built.student.parameters[0].fill_(torch.nan)
    with pytest.raises(Diverged, match="student/model/"):
        checkpoint.store(tmp_path, built.players, {"round": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["round-00000001.safetensors"]


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint.store(tmp_path, build().players, {"round": 1}, keep=1)
    with pytest.raises(UserError, match="belongs to another student: it does not fit at"):
        checkpoint.restore(tmp_path, build({"student": {"network": "cnn6"}}).players)
    path = tmp_path / "round-00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.restore(tmp_path, build().players)


AVERAGED = {"student": {"average": 0.5}}  # of 8 updates: the last 4, so 3/4 once the warm-up is over


def test_the_average_is_the_recursion_over_all_updates() -> None:
    built = build(AVERAGED)
    expected = {key: value.clone() for key, value in built.student.module.state_dict().items()}
    for index in range(built.config.rounds):
        for turn in range(len(built.turns)):
            built.play(index, turn)
            if built.turns[turn].kind == "student":
                n, own = built.student.updates, built.student.module.state_dict()
                decay = min(0.75, (1 + n) / (10 + n))
                expected = {key: decay * expected[key] + (1 - decay) * value for key, value in own.items()}
    student = built.networks().student
    assert student is not built.student.module
    for name, value in student.named_parameters():
        torch.testing.assert_close(value, expected[name])
        assert not torch.equal(value, built.student.module.state_dict()[name])


def test_the_average_goes_on_to_the_bit(tmp_path: Path) -> None:
    straight, first, second = build(AVERAGED), build(AVERAGED), build(AVERAGED)
    play_round(straight, 0)
    play_round(first, 0)
    checkpoint.store(tmp_path, first.players, {"round": 1}, keep=1)
    checkpoint.restore(tmp_path, second.players)
    for built in (straight, second):
        play_round(built, 1)
    one, other = (built.networks().student.state_dict() for built in (straight, second))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_average_needs_whole_networks() -> None:
    with pytest.raises(UserError, match=r"student.average=0.5: expected 0 under distributed.strategy=fsdp"):
        build({**AVERAGED, "distributed": {"strategy": "fsdp"}})
