"""Generator turns of a round, a generator that begins anew, and the average of its weights."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import methods, resolve
from harness.algorithm import views
from harness.algorithm.latents import uniform
from harness.algorithm.turns import Answer
from harness.config.parse import Overlay, merge
from harness.errors import UserError
from harness.networks import preprocessing, roles
from harness.training import checkpoint
from harness.training.machine import Machine
from tests.unit.test_baselines import build, play_round


def of(over: Overlay = MappingProxyType({}), method: str = "ddad") -> Machine:
    return build(method, over=merge({"student_steps": 2, "rounds": 4}, over))


def weights(built: Machine) -> dict[str, Tensor]:
    assert built.generator
    return {name: value.clone() for name, value in built.generator.module.state_dict().items()}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("ddad", "student/latents student/latents generator/latents generator/latents"),
        ("dafl", "student/latents student/latents generator/same generator/same"),
        ("zskt", "generator/latents generator/latents student/same student/same"),
    ],
)
def test_a_round_has_so_many_generator_turns(method: str, expected: str) -> None:
    built = of({"generator_steps": 2}, method)
    assert " ".join(f"{turn.kind}/{turn.source}" for turn in built.turns) == expected
    play_round(built, 0)
    assert built.generator and built.generator.updates == 2 and built.generator.num_updates == 8


def test_generator_turns_have_latents_of_their_own() -> None:
    sources = of({"generator_steps": 2}).sources
    z = [sources.latents(0, turn, 0)[0] for turn in (2, 3)]
    assert not torch.equal(*z)
    shared = of({"generator_steps": 2}, "zskt").sources
    assert torch.equal(shared.latents(0, 1, 0)[0], shared.latents(0, 3, 0)[0]), "students see the last turn's"


HELD: Overlay = {
    "student_steps": 3,
    "generator_steps": 2,
    "shared_latents": True,
    "replay": {"share": 0.4, "augment": True},
    "inversion": {"views": "crop"},
}


def test_with_shared_latents_a_round_improves_one_batch_and_the_student_has_it() -> None:
    built = of(HELD)
    kinds = " ".join(f"{turn.kind}/{turn.source}" for turn in built.turns)
    assert kinds == "generator/latents generator/same student/same student/same student/pool"
    z = [built.sources.latents(1, turn, 0)[0] for turn in range(4)]
    assert all(torch.equal(z[0], each) for each in z)
    assert not torch.equal(z[0], built.sources.latents(2, 0, 0)[0])
    play_round(built, 0)
    for turn in (0, 1):
        built.play(1, turn)
    assert built.generator and built.sources.pool
    (x, t), (again, _) = (built.sources.lesson(1, turn, 0) for turn in (2, 3))
    assert torch.equal(x, again)
    torch.testing.assert_close(x, built.generator.frozen_forward(z[0]).detach(), atol=0.02, rtol=0)  # 256 levels
    assert built.sources.pool.filled == 2, "one batch a round"
    kept = built.sources.pool.tensors(2)
    torch.testing.assert_close(kept["pool/logits"][1], t.logits.float())


def test_a_student_that_resumes_within_a_round_has_the_same_images() -> None:
    built, other = of(HELD), of(HELD)
    for turn in range(3):
        built.play(0, turn)
    assert built.generator and other.generator
    other.generator.begin_from(built.generator.module.state_dict())
    other.sources.take(built.sources.kept(0, 3))
    assert torch.equal(other.sources.lesson(0, 3, 0)[0], built.sources.lesson(0, 3, 0)[0])
    assert all(torch.equal(value, built.sources.kept(0, 4)[name]) for name, value in other.sources.kept(0, 4).items())


@pytest.mark.parametrize("name", ["none", "jitter", "crop"])
@pytest.mark.parametrize("method", ["ddad", "dafl", "zskt", "dfq"])
def test_the_teacher_judges_a_view_of_the_generators_images(
    method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = of({"inversion": {"views": name}}, method)
    assert built.teacher and built.generator
    seen: list[Tensor] = []
    judge = built.teacher.judge

    def record(x: Tensor) -> Answer:
        seen.append(x.detach())
        return judge(x)

    monkeypatch.setattr(built.teacher, "judge", record)
    turn = next(index for index, turn in enumerate(built.turns) if turn.kind == "generator")
    x = built.generator.frozen_forward(built.sources.latents(0, turn, 0)[0]).detach()
    built.play(0, turn)
    draws = uniform(range(len(x)), len(x), 3, built.config.seed, "views", 0, turn)
    black = preprocessing.black(built.config)
    expected = x if name == "none" else views.of(name, x, draws, built.config.input.mirror, black)
    torch.testing.assert_close(seen[0], expected)
    assert torch.allclose(seen[0], x) == (name == "none")


def test_a_warm_up_round_has_all_generator_turns() -> None:
    built = of({"generator_steps": 2, "generator": {"warmup": 3}})
    for step in range(built.num_preparations):
        built.prepare(step)
    assert built.generator and built.generator.updates == 6 and built.student.updates == 0
    assert built.generator.learning_rate() == pytest.approx(built.generator.learning_rate(6))
    assert built.generator.num_updates == 2 * (3 + 4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_generator_begins_anew_with_fresh_weights_and_moments(optimizer: str) -> None:
    over = {"generator": {"restart": 2, "optimizer": optimizer, "schedule": "constant"}}
    built = of(over)
    for index in range(2):
        play_round(built, index)
    went_on = weights(built)
    built.play(2, 0)
    assert built.generator
    fresh = roles.generator(built.config, 2).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in weights(built).items())
    assert not torch.equal(weights(built)["linear.weight"], went_on["linear.weight"])
    assert all(not value.any() for value in built.generator.engine.moments().values())
    # Its next update is that of a machine whose generator has these weights and has not made an update yet.
    other = of(merge(over, {"generator": {"restart": 0}}))
    assert other.generator
    other.generator.begin_from(fresh)
    other.student.begin_from(built.student.module.state_dict())
    for machine in (built, other):
        machine.play(2, 2)
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(built).items())


def test_a_restart_is_neither_in_the_warm_up_nor_at_the_start() -> None:
    built, plain = (of({"generator": {"restart": every, "warmup": 2}}) for every in (1, 0))
    for machine in (built, plain):
        for step in range(machine.num_preparations):
            machine.prepare(step)
        machine.play(0, 0)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(built).items())


@pytest.mark.parametrize("generator", [{"restart": 2}, {"average": 0.5}])
def test_a_restored_run_goes_on_to_the_bit(generator: dict[str, Any], tmp_path: Path) -> None:
    over = {"generator_steps": 2, "generator": generator}
    straight, first, second = (of(over) for _ in range(3))
    for index in range(4):
        play_round(straight, index)
    for index in range(2):
        play_round(first, index)
    checkpoint.store(tmp_path, first.players, {"round": 2}, keep=1)
    checkpoint.restore(tmp_path, second.players)
    for index in (2, 3):
        play_round(second, index)
    for name, player in straight.players.items():
        other = second.players[name].outcome()
        assert all(torch.equal(value, other[key]) for key, value in player.outcome().items())


def test_students_see_the_images_of_the_averaged_generator() -> None:
    built = of({"generator": {"average": 0.5, "lr": 0.1}})
    play_round(built, 0)
    play_round(built, 1)
    assert built.generator and built.generator.average
    x, _ = built.sources.lesson(2, 0, 0)
    z, _ = built.sources.latents(2, 0, 0)
    averaged = roles.generator(built.config).train()
    averaged.load_state_dict(built.generator.outcome())
    with torch.no_grad():
        torch.testing.assert_close(x, averaged(z))
        assert not torch.allclose(x, built.generator.frozen_forward(z), atol=1e-2)
    shown = built.networks().generator
    assert shown and all(torch.equal(value, shown.state_dict()[name]) for name, value in averaged.named_parameters())


def turns_of(method: str, over: Overlay) -> list[methods.Turn]:
    return methods.METHODS[method].turns(resolve.resolve("digits", None, merge({"method": method}, over)))


def test_settings_that_cannot_be_are_refused() -> None:
    cases: list[tuple[str, Overlay, str]] = [
        ("ddad", {"generator_steps": 0}, "generator_steps=0: expected at least 1"),
        ("ddad", {"generator": {"restart": -1}}, "generator.restart=-1: expected at least 0"),
        ("ddad", {"generator": {"class_distance": -1.0}}, "class_distance=-1.0: expected a distance of at least 0"),
        ("ddad", {"generator": {"average": 1.0}}, "generator.average=1.0: expected a share of the run's updates"),
        (
            "ddad",
            {"generator": {"average": 0.1, "restart": 2}},
            "generator.average=0.1: expected 0 with generator.restart=2",
        ),
        (
            "ddad",
            {"generator": {"average": 0.1}, "distributed": {"strategy": "fsdp"}},
            "generator.average=0.1: expected 0 under distributed.strategy=fsdp",
        ),
        ("fast", {"generator": {"average": 0.1}}, "generator.average=0.1: method=fast has no generator for the whole"),
        ("kd", {"generator_steps": 2}, "generator_steps=2: method=kd has no generator for the whole run: set 1"),
        (
            "kd",
            {"shared_latents": True},
            "shared_latents=true: method=kd has no generator for the whole run: set false",
        ),
        ("kd", {"inversion": {"views": "crop"}}, "inversion.views=crop: method=kd generates no images: set none"),
        ("fast", {"shared_latents": True}, "shared_latents=true: method=fast has no generator for the whole run"),
        (
            "zskt",
            {"shared_latents": True},
            "shared_latents=true: method=zskt has an order of turns of its own: set fal",
        ),
        ("dafl", {"shared_latents": True}, "shared_latents=true: method=dafl has an order of turns of its own"),
        ("kd", {"generator": {"restart": 2}}, "generator.restart=2: method=kd has no generator for the whole run"),
    ]
    for method, over, message in cases:
        with pytest.raises(UserError) as error:
            turns_of(method, over)
        assert message in str(error.value) and "\n" not in str(error.value)
