"""What comes before the first round, and the distance between blocks, in the machine of a run."""

from __future__ import annotations

import copy
import dataclasses
from types import MappingProxyType

import pytest
import torch

from harness import methods, resolve
from harness.commands.progress import remaining
from harness.config.parse import Overlay, merge
from harness.distributed.fsdp import check_weights
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.networks import maps, roles
from harness.training.machine import Machine
from harness.training.report import Report
from harness.training.teaching import supervised_config

SMALL: Overlay = {
    "rounds": 4,
    "batch_size": 8,
    "student_steps": 2,
    "precision": "fp64",
    "teacher": {"checkpoint": "untrained", "network": "wrn10_1", "channels": "rgb", "mean": None, "std": None},
    "student": {"network": "wrn10_1", "lr": 0.05},
    "generator": {"latent_size": 8, "width": 8},
}


def build(over: Overlay = MappingProxyType({}), method: str = "ddad") -> Machine:
    config = resolve.resolve("digits", None, merge(merge(SMALL, {"method": method}), over))
    turns = methods.METHODS[method].turns(config)
    return Machine(config, Runtime(config), turns, roles.teacher(config))


def test_only_the_generator_learns_and_does_not_seek_disagreement() -> None:
    built = build({"generator": {"warmup": 3}})
    before = {name: copy.deepcopy(player.module.state_dict()) for name, player in built.players.items()}
    seen: list[set[str]] = []
    play = built.play

    def noted(round_index: int, turn_index: int, part: int = 0) -> object:
        assert (round_index, built.turns[turn_index].kind) == (len(seen) - 3, "generator")
        terms = play(round_index, turn_index, part)
        seen.append(set(terms.values))
        return terms

    built.play = noted  # type: ignore[method-assign, assignment]
    for step in range(built.num_preparations):
        built.prepare(step)
    assert len(seen) == 3 and all("batch_norm" in names and "adversarial" not in names for names in seen)
    torch.testing.assert_close(built.student.module.state_dict(), before["student"], rtol=0, atol=0)
    assert built.generator is not None and built.generator.updates == 3 and built.student.updates == 0
    changed = [not torch.equal(value, before["generator"][name]) for name, value in
               built.generator.module.state_dict().items() if name.endswith("weight")]  # fmt: skip
    assert all(changed)
    assert "adversarial" in play(0, 2).values


def test_the_schedule_of_the_generator_covers_its_warmup() -> None:
    built = build({"generator": {"warmup": 4}})
    for step in range(built.num_preparations):
        built.prepare(step)
    assert built.generator is not None and built.generator.learning_rate() == pytest.approx(1e-3 / 2)


@pytest.mark.parametrize(
    ("over", "method", "expected"),
    [
        ({"generator": {"warmup": 2}}, "fast", "generator.warmup=2: method=fast has no generator for the whole run"),
        ({"generator": {"warmup": 2}}, "kd", "generator.warmup=2: method=kd has no generator for the whole run: set 0"),
        ({"generator": {"warmup": 2}}, "dfad", "generator.warmup=2: without the adversarial term the generator has "),
        ({"generator": {"warmup": -1}}, "ddad", "generator.warmup=-1: expected at least 0"),
        (
            {"replay": {"share": 0.5}, "student_steps": 1},
            "ddad",
            "replay.share=0.5 of student_steps=1 is no turn: ",
        ),
        ({"student": {"features": 1.0}, "replay": {"share": 0.5}}, "ddad", "student.features=1.0: the pool keeps no "),
        ({"student": {"features_until": 0.0}}, "ddad", "student.features_until=0.0: expected a share of the rounds"),
        ({"student": {"features_until": 1.5}}, "ddad", "student.features_until=1.5: expected a share of the rounds"),
    ],
)
def test_what_cannot_be_is_refused(over: Overlay, method: str, expected: str) -> None:
    with pytest.raises(UserError, match="^" + expected.replace("(", r"\(")):
        build(over, method)


def test_blocks_of_equal_name_and_shape_are_compared() -> None:
    built = build({"student": {"features": 2.0}})
    assert built.teacher is not None
    names = [name for name, layer in built.student.module.named_modules() if layer in built.student.compared.blocks]
    assert names == ["layer1.layer.0", "layer2.layer.0", "layer3.layer.0"]
    theirs = [name for name, layer in built.teacher.module.named_modules() if layer in built.teacher.compared.blocks]
    assert theirs == names
    terms = built.play(0, 0)
    assert terms.total.item() == pytest.approx((terms.values["discrepancy"] + 2 * terms.values["features"]).item())
    assert terms.values["features"] > 0


def test_blocks_are_compared_until_a_share_of_the_rounds() -> None:
    built = build({"student": {"features": 2.0, "features_until": 0.5}, "rounds": 5})
    found = [built.play(index, 0) for index in range(5)]
    assert ["features" in terms.values for terms in found] == [True, True, True, False, False]
    assert found[4].total.item() == pytest.approx(found[4].values["discrepancy"].item())


@pytest.mark.parametrize(
    ("own", "theirs", "kept", "expected"),
    [
        (3, 3, None, [0, 1, 2]),
        (3, 9, None, [2, 5, 8]),
        (3, 5, None, [0, 2, 4]),
        (3, 5, [0, 1, 2], [0, 1, 4]),
        (3, 9, [0, 3, 8], [2, 7, 8]),
        (5, 3, None, [None, 0, None, 1, 2]),
        (2, 0, None, [None, None]),
    ],
)
def test_a_stages_last_block_is_compared_with_the_last(
    own: int, theirs: int, kept: list[int] | None, expected: list[int | None]
) -> None:
    blocks, names = [f"layer1.{index}" for index in range(own)], [f"layer1.{index}" for index in range(theirs)]
    found = maps._corresponding(blocks, names, kept)
    assert found == [None if index is None else names[index] for index in expected]


def test_a_shorter_student_is_compared_with_the_ends_of_stages() -> None:
    built = build({"teacher": {"network": "wrn28_1"}, "student": {"network": "wrn16_1", "features": 1.0}})
    assert built.teacher is not None
    names = [name for name, layer in built.teacher.module.named_modules() if layer in built.teacher.compared.blocks]
    assert names == [f"layer{stage}.layer.{index}" for stage in (1, 2, 3) for index in (1, 3)]


def test_a_pruned_student_is_compared_with_what_its_blocks_were() -> None:
    over = {"network": "pruned", "arguments": {"channels": 0.5, "blocks": 0.5}, "features": 1.0}
    built = build({"teacher": {"network": "wrn28_1"}, "student": over})
    assert built.teacher is not None
    theirs = [name for name, layer in built.teacher.module.named_modules() if layer in built.teacher.compared.blocks]
    own = [name for name, layer in built.student.module.named_modules() if layer in built.student.compared.blocks]
    last = {stage: f"layer{stage}.layer.3" for stage in (1, 2, 3)}
    assert len(own) == len(theirs) < 12 and set(last.values()) <= set(theirs)
    assert all(int(a[-1]) >= int(b[-1]) and a[:-1] == b[:-1] for a, b in zip(theirs, own, strict=True))


def test_networks_without_a_common_block_are_refused() -> None:
    over = {"student": {"features": 1.0, "network": "vgg11_bn"}, "input": {"size": 32}}
    with pytest.raises(
        UserError, match=r"student.features=1.0: .*'wrn10_1' and .*'vgg11_bn' have no block of equal stage"
    ):
        build(over)


def test_a_block_that_answers_as_the_teachers_is_at_distance_0() -> None:
    built = build({"student": {"features": 1.0}})
    assert built.teacher is not None
    built.student.module.load_state_dict(built.teacher.module.state_dict())
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    built.student.module.eval()
    with torch.no_grad():
        t = built.teacher.answer(x)
        s = maps.answer(built.student.module, x, built.student.compared)
    assert all(torch.equal(a, b) for a, b in zip(t.blocks, s.blocks, strict=True)) and len(t.blocks) == 3


def test_a_teacher_is_taught_whatever_its_students_variant_asks_of_the_generator() -> None:
    config = resolve.resolve("digits", None, {"variant": "warm", "replay": {"share": 0.8}})
    lesson = supervised_config(config)
    assert (lesson.generator.warmup, lesson.replay.share, lesson.student.reconstruct) == (0, 0.0, 0)
    assert [turn.kind for turn in methods.METHODS[lesson.method].turns(lesson)] == ["supervised"]


def test_a_sharded_teacher_needs_a_loss_over_logits_in_the_warmup_too() -> None:
    over: Overlay = {"generator": {"warmup": 2}, "weights": {"one_hot": 0.1}}
    check_weights(resolve.resolve("digits", None, merge(SMALL, over)))
    for refused, words in (
        ({"generator": {"warmup": 2}}, "generator.warmup=2 has none"),
        ({"adversarial_after": 0.5}, "from round 0 there is none"),
    ):
        with pytest.raises(UserError, match=words):
            check_weights(resolve.resolve("digits", None, merge(SMALL, refused)))


def test_turns_of_the_same_images_have_those_of_the_latents_before_them() -> None:
    config = resolve.resolve("digits", None, SMALL)
    student, generator = methods.METHODS["ddad"].turns(config)[0], methods.METHODS["ddad"].turns(config)[-1]
    same = dataclasses.replace(student, source="same")
    built = Machine(config, Runtime(config), [student, same, student, same, generator], roles.teacher(config))
    first, second = built.sources.lesson(0, 1, 0)[0], built.sources.lesson(0, 3, 0)[0]
    assert torch.equal(first, built.sources.lesson(0, 0, 0)[0])
    assert torch.equal(second, built.sources.lesson(0, 2, 0)[0]) and not torch.equal(first, second)


def test_the_time_left_does_not_count_the_warm_up() -> None:
    first, last = Report(1, 9, 100.0, 0.01), Report(3, 9, 120.0, 0.025)
    assert remaining(first, last) == "1:00"
    assert remaining(first, first) == "13:20"
    assert remaining(Report(0, 9, 0.0, 0.0), Report(0, 9, 0.0, 0.0)) == "?"
