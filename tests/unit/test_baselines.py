"""The data-free methods beside DDAD: what their turns share, what their losses see, and that each runs and resumes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness import methods, resolve, task
from harness.algorithm import losses
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime
from harness.errors import UserError
from harness.methods import baselines
from harness.networks import maps, roles
from harness.networks.build import network
from harness.training import checkpoint
from harness.training.machine import Machine
from tests.unit.test_losses import value

SMALL: Overlay = {
    "rounds": 3,
    "batch_size": 8,
    "teacher": {"checkpoint": "untrained"},
    "generator": {"latent_size": 8, "width": 4},
}

INVERTING: Overlay = {
    "student_steps": 3,
    "inversion": {"steps": 3, "rounds": 1},
    "adversarial_after": 0.0,
    "replay": {"memory": 1.0},
}
"""Fewer and shorter turns for the methods that make each batch by many steps."""

RECIPES: dict[str, Overlay] = {
    "digits": {"teacher": {"network": "cnn8"}, "student": {"network": "cnn4"}},
    "camvid-smoke": {"batch_size": 4},
}

DATA_FREE = [name for name, method in methods.METHODS.items() if method.data_free]

VARIANTS = [(name, variant) for name in DATA_FREE for variant in methods.METHODS[name].variants]


def build(method: str, recipe: str = "digits", over: Overlay | None = None) -> Machine:
    small = merge(merge(SMALL, RECIPES[recipe]), {"method": method})
    if method in ("deepinversion", "cmi", "fast", "nayer"):
        small = merge(small, INVERTING)
    if method == "cmi":
        small = merge(small, {"inversion": {"bank": 12}})
    config = resolve.resolve(recipe, None, merge(small, over or {}))
    turns = methods.METHODS[method].turns(config)
    return Machine(config, Runtime(config), turns, roles.teacher(config))


def play_round(built: Machine, index: int) -> list[dict[str, Tensor]]:
    return [built.play(index, place).values for place in range(len(built.turns))]


def seen(built: Machine) -> tuple[list[Tensor], list[Tensor]]:
    """What the student is shown in its own turns, and what the teacher is asked, from now on."""
    shown: list[Tensor] = []
    asked: list[Tensor] = []

    def show(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if built.student.parameters[0].requires_grad:
            shown.append(inputs[0].detach().clone())

    def ask(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        asked.append(inputs[0].detach().clone())

    assert built.teacher
    built.student.module.register_forward_pre_hook(show)
    built.teacher.module.register_forward_pre_hook(ask)
    return shown, asked


@pytest.mark.parametrize(("method", "variant"), VARIANTS)
def test_every_variant_is_a_configuration(method: str, variant: str) -> None:
    config = resolve.resolve("digits", None, {"method": method, "variant": variant})
    assert (config.method, config.variant) == (method, variant)
    assert {turn.kind for turn in methods.METHODS[method].turns(config)} == {"student", "generator"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", DATA_FREE)
def test_every_method_runs_on_every_task_and_moves_both_players(method: str, recipe: str) -> None:
    built = build(method, recipe, {"weights": {"target": 0.0}} if recipe == "camvid-smoke" else {})
    before = [player.parameters[0].clone() for player in built.players.values()]
    for values in play_round(built, 0):
        assert all(value.isfinite() for value in values.values())
    after = [player.parameters[0] for player in built.players.values()]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("method", "variant"), [(name, variant) for name, variant in VARIANTS if variant == "paper" or name == "ddad"]
)
def test_a_restored_run_goes_on_to_the_bit(method: str, variant: str, tmp_path: Path) -> None:
    over: Overlay = {"variant": variant}
    if variant in ("warm", "warm_noisy", "blocks"):  # they compare blocks, which these small networks have not
        over = merge(over, {"teacher": {"network": "wrn10_1"}, "student": {"network": "wrn10_1"}})
    straight, first, second = (build(method, over=over) for _ in range(3))
    for index in range(3):
        play_round(straight, index)
    play_round(first, 0)
    play_round(first, 1)
    checkpoint.store(tmp_path, first.players, {"round": 2}, keep=1, others=first.sources.kept(2))
    state = checkpoint.restore(tmp_path, second.players, take=second.sources.take)
    assert state is not None and state["round"] == 2
    play_round(second, 2)
    for name, player in straight.players.items():
        other = second.players[name].module.state_dict()
        assert all(torch.equal(value, other[key]) for key, value in player.module.state_dict().items())


@pytest.mark.parametrize("method", [name for name in DATA_FREE if name != "dafl"])
def test_the_adversarial_term_compares_teacher_with_student(method: str) -> None:
    """Passing the teacher as the student, a fault of public code, would make the term identically zero."""
    everywhere = {"adversarial_where": "all"}  # untrained networks may agree nowhere
    built = build(method, over=everywhere)
    (place,) = [place for place, turn in enumerate(built.turns) if turn.kind == "generator"]
    assert built.play(0, place).values["adversarial"] > 1e-5
    same = build(method, over=merge(everywhere, {"student": {"network": "cnn8"}}))
    assert same.teacher
    same.student.module.load_state_dict(same.teacher.module.state_dict())
    same.student.module.eval()
    assert same.play(0, place).values["adversarial"].item() == pytest.approx(0, abs=1e-6)


def test_dafl_learns_twice_from_one_batch_and_its_generator_asks_no_student() -> None:
    built = build("dafl")
    assert [(turn.kind, turn.source) for turn in built.turns] == [("student", "latents"), ("generator", "same")]
    _, asked = seen(built)
    calls = []
    built.student.module.register_forward_pre_hook(lambda *_: calls.append(1))
    first, second = play_round(built, 0)
    assert torch.equal(asked[0], asked[1]) and len(calls) == 1
    assert "adversarial" not in second and {"one_hot", "class_balance", "activation"} <= set(second)
    assert first["discrepancy"] > 0


def test_dafl_weighs_a_logarithm_to_base_10() -> None:
    t = torch.tensor([[1.0, 2.0, 0.5], [0.0, 3.0, 1.0]])
    p = t.softmax(1).mean(0)
    weights = baselines.DAFL["paper"]["weights"]
    assert weights["class_balance"] * value(losses.class_balance(t)) == pytest.approx(5 * (p * p.log10()).sum().item())


def test_zskt_teaches_the_same_images_at_the_price_of_one_batch() -> None:
    built = build("zskt")
    assert [turn.kind for turn in built.turns] == ["generator"] + ["student"] * 10
    shown, asked = seen(built)
    values = play_round(built, 0)
    assert len(shown) == 10 and all(torch.equal(x, shown[0]) for x in shown)
    assert len(asked) == 2, "once in the generator's turn, once for all turns of the student"
    assert not torch.equal(asked[0], asked[1]), "the generator has learnt between the two"
    assert values[1]["attention"] > 0
    play_round(built, 1)
    assert not torch.equal(shown[10], shown[0]) and len(asked) == 4


def test_zskt_counts_its_attention_in_the_loss() -> None:
    terms = build("zskt").play(0, 1)
    expected = terms.values["discrepancy"] + 250 * terms.values["attention"]
    assert terms.total.item() == pytest.approx(expected.item())


def test_attention_without_a_common_size_is_refused() -> None:
    colour = {"network": "cnn8", "channels": "rgb", "mean": None, "std": None}
    over = {"teacher": colour, "student": {"network": "torchvision:alexnet"}, "input": {"size": 64}}
    with pytest.raises(UserError, match=r"student.attention=250.0: teacher.network='cnn8' and .* in common: set"):
        build("zskt", over=over)
    with pytest.raises(UserError, match=r"student.hints=2.0: teacher.network='cnn8' and .* in common: set"):
        build("ddad", over=merge(over, {"student": {"hints": 2.0}}))


def test_hints_are_a_term_of_the_students_turn() -> None:
    terms = build("ddad", over={"student": {"hints": 2.0}}).play(0, 0)
    assert 0 < terms.values["hints"] <= 1, "cnn8 and cnn4 have other widths"
    assert terms.total.item() == pytest.approx((terms.values["discrepancy"] + 2 * terms.values["hints"]).item())


def test_hints_of_too_few_positions_are_said() -> None:
    assert not build("ddad", over={"student": {"hints": 2.0}}).doubts
    wide = {"student": {"hints": 2.0, "network": "cnn64"}, "batch_size": 4}
    (line,) = build("ddad", over=wide).doubts
    assert line.startswith("student.hints: a layer of the student has 128 channels, and 4 images have only 64")


def test_maps_are_compared_in_fp32_where_networks_train_in_bf16() -> None:
    built = build("ddad", over={"student": {"hints": 2.0}, "precision": "bf16"})
    found = built.student.answer(torch.zeros(4, 1, 8, 8))
    assert [maps.dtype for maps in found.maps] == [torch.float32] * 2
    seen: list[torch.dtype] = []
    first = built.student.module.get_submodule("features.0")
    with first.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype)):
        built.student.answer(torch.zeros(4, 1, 8, 8))
    assert seen == [torch.bfloat16]


def test_attention_pairs_the_last_layers_of_each_size() -> None:
    config = resolve.resolve("digits")
    small, large = roles.student(config), roles.teacher(resolve.untrained(config))
    theirs, own = maps.shared(config, large, small, "attention")
    for compared, layers in ((large, theirs), (small, own)):
        features = compared.get_submodule("features")
        assert layers == [features[5], features]  # the activation before the pool, and all before the average
    classifier = network(task.load("classification"), "resnet20", 10, 3)
    expected = [classifier.get_submodule(name) for name in ("layer1", "layer2", "layer3")]
    assert list(maps.last_by_size(classifier, torch.zeros(2, 3, 32, 32)).values()) == expected
    dense = network(task.load("segmentation"), "unet4", 3, 3)
    expected = [dense.get_submodule(name) for name in ("up1", "up2", "bottom")]
    assert list(maps.last_by_size(dense, torch.zeros(2, 3, 32, 32)).values()) == expected


def test_dfq_publishes_two_forms() -> None:
    script = build("dfq").play(0, 10).values
    assert {"adversarial", "batch_norm", "class_balance", "one_hot"} <= set(script)
    formula = build("dfq", over={"variant": "formula"})
    values = formula.play(0, 10).values
    assert "one_hot" not in values and formula.config.batch_norm_form == "kl"
    assert 0 < values["sample_entropy"] <= math.log(10)
