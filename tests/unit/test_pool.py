"""Replay: the pool holds what was generated, within its memory, and gives it back row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import resolve
from harness.config.parse import merge
from harness.errors import UserError
from harness.methods import METHODS
from harness.training import checkpoint
from harness.training.machine import Machine
from harness.training.pool import Pool
from tests.unit.test_baselines import build, play_round, seen

STEPS, FRESH = 5, 3

REPLAY: dict[str, Any] = {"student_steps": STEPS, "replay": {"share": 0.4}}


def pool(built: Machine) -> Pool:
    assert built.sources.pool
    return built.sources.pool


def rows(batch: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in batch]


def test_a_pool_of_few_batches_is_said() -> None:
    built = build("ddad", over=REPLAY)
    assert not built.doubts
    small = merge(REPLAY, {"replay": {"memory": 2.5 * pool(built).batch_bytes / 2**20}})
    (line,) = build("ddad", over=small).doubts
    assert "the pool holds 2 batches of" in line and "set it to 4 or more" in line


def test_the_share_is_of_the_students_turns() -> None:
    turns = build("ddad", over=REPLAY).turns
    assert [turn.source for turn in turns] == ["latents"] * FRESH + ["pool"] * 2 + ["latents"]
    assert build("ddad").sources.pool is None


@pytest.mark.parametrize("storage", ["uint8", "fp16"])
def test_a_replayed_row_is_an_earlier_one_of_its_place_with_the_teachers_answer(storage: str) -> None:
    built = build("ddad", over=merge(REPLAY, {"replay": {"storage": storage}}))
    assert built.teacher
    shown, asked = seen(built)
    for index in range(3):
        play_round(built, index)
    batches = [shown[first : first + STEPS] for first in range(0, 3 * STEPS, STEPS)]
    origins = set()
    for index, batch in enumerate(batches):
        earlier = [x for before in batches[:index] for x in before[:FRESH]] + batch[:FRESH]
        for turn in range(FRESH, STEPS):
            for place, row in enumerate(rows(batch[turn])):
                found = [number for number, x in enumerate(earlier) if rows(x)[place] == row]
                assert len(found) == 1, "exactly one earlier batch held this row at this place"
                origins.add(found[0])
            x, t = pool(built).draw(index, turn, 0)
            if index == 2:  # later batches have not been stored since
                assert torch.equal(x, batch[turn])
            with torch.no_grad():
                assert torch.allclose(t.logits, built.teacher.module(x), atol=1e-5)
    assert len(origins) > FRESH, "rows come from more than one round"
    assert len(asked) >= 3 * (FRESH + 1)


def test_a_replayed_turn_costs_neither_generator_nor_teacher() -> None:
    built = build("ddad", over=REPLAY)
    assert built.teacher and built.generator
    calls: list[str] = []
    built.teacher.module.register_forward_pre_hook(lambda *_: calls.append("teacher"))
    built.generator.module.register_forward_pre_hook(lambda *_: calls.append("generator"))
    built.play(0, 0)
    assert calls == ["generator", "teacher"]
    before = built.student.parameters[0].clone()
    built.play(0, FRESH)
    assert len(calls) == 2 and not torch.equal(before, built.student.parameters[0])


@pytest.mark.parametrize(("storage", "bound"), [("uint8", 1 / 2), ("fp16", 2**-9)])
def test_the_student_learns_from_images_as_they_are_stored(storage: str, bound: float) -> None:
    built = build("ddad", over=merge(REPLAY, {"replay": {"storage": storage}}))
    assert built.generator
    x = built.generator.frozen_forward(built.sources.latents(0, 0, 0)[0]).detach()
    shown, _ = seen(built)
    built.play(0, 0)
    held = pool(built)._held
    if storage == "uint8":
        expected = held["low"][0] + held["step"][0] * held["images"][0].float()
        step = (x.amax((2, 3), keepdim=True) - x.amin((2, 3), keepdim=True)) / 255
        assert ((expected - x).abs() <= bound * step * 1.01).all()
        assert held["images"][0].amax() == 255 and held["images"].dtype == torch.uint8
    else:
        expected = held["images"][0].float()
        assert torch.allclose(expected, x, rtol=bound, atol=1e-6)
    assert torch.equal(shown[0], expected) and not torch.equal(expected, x)


def test_an_image_of_one_value_is_stored_as_it_is() -> None:
    built = build("ddad", over=REPLAY)
    x = torch.full((8, 1, 8, 8), 0.37)
    assert torch.equal(pool(built).keep(0, 0, 0, x), x)


def test_the_memory_is_bounded_and_the_oldest_make_room() -> None:
    row = 8 * 8 + 2 * 4 + 10 * 4  # pixels, range of the channel, logits
    over = merge(REPLAY, {"replay": {"memory": 4.5 * 8 * row / 2**20}})
    built = build("ddad", over=over)
    assert pool(built).capacity == 4
    assert sum(held.numel() * held.element_size() for held in pool(built)._held.values()) == 4 * 8 * row
    shown, _ = seen(built)
    for index in range(2):
        play_round(built, index)
    fresh = [x for first in (0, STEPS) for x in shown[first : first + FRESH]]  # 6 batches, of which 4 are held
    held = {row for slot in range(4) for row in rows(_images(built, slot))}
    assert held == {row for x in fresh[2:] for row in rows(x)}


def _images(built: Machine, slot: int) -> Tensor:
    held = {name: values[slot] for name, values in pool(built)._held.items()}
    return held["low"] + held["step"] * held["images"].float()


@pytest.mark.parametrize("over", [{}, {"micro_batches": 2}, {"replay": {"storage": "fp16"}}, {"method": "dafl"}])
def test_a_restored_run_goes_on_to_the_bit(over: dict[str, Any], tmp_path: Path) -> None:
    over = merge(merge(REPLAY, {"replay": {"memory": 0.01}}), over)
    method = over.pop("method", "ddad")
    straight, first, second, blank = (build(method, over=over) for _ in range(4))

    def play(built: Machine, index: int) -> None:
        for place in range(len(built.turns)):
            for part in range(built.config.micro_batches):
                built.play(index, place, part)

    for index in range(3):
        play(straight, index)
    for index in range(2):
        play(first, index)
    checkpoint.store(tmp_path, first.players, {"round": 2}, keep=1, others=first.sources.kept(2))
    checkpoint.restore(tmp_path, second.players, take=second.sources.take)
    checkpoint.restore(tmp_path, blank.players)
    ends = []
    for built in (straight, second, blank):
        if built is not straight:
            play(built, 2)
        ends.append({key: value.clone() for key, value in built.student.module.state_dict().items()})
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert not all(torch.equal(value, ends[2][key]) for key, value in ends[0].items()), "the pool did not matter"


@pytest.mark.parametrize(
    ("method", "over", "message"),
    [
        ("ddad", {"student_steps": 4, "replay": {"share": 0.2}}, "replay.share=0.2 of student_steps=4 is no turn"),
        ("ddad", {"replay": {"share": 1.0}}, "replay.share=1.0: expected a share"),
        ("ddad", {"replay": {"memory": 0.0}}, "replay.memory=0.0: expected MiB above 0"),
        ("ddad", merge(REPLAY, {"replay": {"memory": 1e-4}}), "replay.memory=0.0001: a batch of 8 takes 0.00085"),
        ("ddad", merge(REPLAY, {"student": {"attention": 1.0}}), "the pool keeps no feature maps: set student.att"),
        ("zskt", {"replay": {"share": 0.5}}, "method=zskt has no replay, its student turns use the images"),
        ("kd", {"replay": {"share": 0.5}}, "method=kd has no replay, it generates no images: set 0"),
        ("ddad", {"replay": {"augment": True}}, "replay.augment=true: replay.share=0, so no student turn draws from"),
        ("kd", {"replay": {"augment": True}}, "replay.augment=true: method=kd has no replay, it generates no images"),
        ("zskt", {"replay": {"augment": True}}, "replay.augment=true: method=zskt has no replay, its student turns"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(method: str, over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build(method, over=over)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_without_replay_has_the_turns_it_had() -> None:
    config = resolve.resolve("digits")
    assert {turn.source for turn in METHODS["ddad"].turns(config)} == {"latents"}


def test_a_mixture_lies_between_two_views_of_the_pools_images_and_the_teacher_is_asked_of_it() -> None:
    over = {"student_steps": STEPS, "replay": {"share": 0.4, "augment": True, "mixup": True}}
    built, where = build("ddad", over=over), (1, STEPS - 1, 0)
    assert built.teacher
    for index in range(2):
        play_round(built, index)
    sources = built.sources
    x, t = sources.lesson(*where)
    with torch.no_grad():
        assert torch.equal(t.logits, built.teacher.module(x))
    own = sources._cropped(pool(built).draw(*where)[0], "views", *where)
    other = sources._cropped(pool(built).draw(*where, use="partner")[0], "views of partners", *where)
    assert not torch.equal(own, other)
    shares = ((x - other) * (own - other)).sum((1, 2, 3)) / (own - other).square().sum((1, 2, 3))
    assert all(0 <= share < 1 for share in shares) and len(set(shares.tolist())) == len(x)
    torch.testing.assert_close(x, other + shares[:, None, None, None] * (own - other))


def test_a_mixture_without_new_answers_is_refused() -> None:
    expected = "replay.mixup=True: expected replay.augment=true, with which the teacher runs on the images again"
    with pytest.raises(UserError, match=expected):
        resolve.resolve("digits", None, {"replay": {"share": 0.4, "mixup": True}})
