"""Methods that make each batch of images by many steps: what a batch starts from, what it seeks, what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness import resolve
from harness.algorithm import losses, moments, views
from harness.algorithm.turns import Terms
from harness.config.parse import merge
from harness.errors import UserError
from harness.methods import Turn
from harness.networks import layers
from harness.training import checkpoint, distill
from harness.training.inversion import Inversion, num_steps
from harness.training.machine import Machine
from tests.distributed import slopes
from tests.unit.test_baselines import build, play_round
from tests.unit.test_losses import P, Q, logits, value
from tune import generated

METHODS = ("deepinversion", "cmi", "fast", "nayer")


def maker(built: Machine) -> Inversion:
    assert built.inversion
    return built.inversion


def watched(built: Machine) -> Iterator[tuple[float, Tensor]]:
    """(loss, images) of each step of the first round's image turn."""
    steps: list[tuple[float, Tensor]] = []
    loss = built._loss

    def listen(turn: Turn, round_index: int, *answers: object) -> Terms:
        terms = loss(turn, round_index, *answers)
        steps.append((terms.total.item(), maker(built).batch.images.detach().clone()))
        return terms

    built._loss = listen  # type: ignore[method-assign]
    built.play(0, 0)
    built._loss = loss  # type: ignore[method-assign]
    yield from steps


def test_the_adversarial_term_counts_where_both_name_one_class() -> None:
    t, s = logits(P, P), logits(Q, [0.0, 1.0])  # the first agree on class 0, a tie; the second do not
    expected = (0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)) / 2
    assert value(losses.adversarial(t, s, "kl", 1.0, "identity", "agreed")) == pytest.approx(expected)
    both = [value(losses.adversarial(t, s, name, 1.0, "identity")) for name in ("kl", "l1")]
    assert both[0] > expected
    l1 = (abs(P[0] - Q[0]) + abs(P[1] - Q[1])) / 4
    assert value(losses.adversarial(t, s, "l1", 1.0, "identity", "agreed")) == pytest.approx(l1)


def test_the_contrastive_term_tells_images_from_each_other() -> None:
    e1, e2, e3 = torch.eye(3, dtype=torch.float64)
    local, whole, bank = torch.stack([e1, e2]), torch.stack([e1, e1]), torch.stack([e3, e3])[:, None]
    none = bank[:, :0]
    # Logits of the first image: 2, 2; of the second: 0, 0; both are of two equal ones.
    assert value(losses.contrastive(local, whole, range(2), 2, none, 0.5)) == pytest.approx(math.log(2))
    first = -math.log(math.exp(2) / (2 * math.exp(2) + 1))  # the earlier image is one more that it is not
    earlier = -math.log(math.exp(2) / (math.exp(2) + 2))
    expected = (first + math.log(3)) / 2 + earlier
    assert value(losses.contrastive(local, whole, range(2), 2, bank, 0.5)) == pytest.approx(expected)


def test_statistics_are_averaged_with_those_of_the_past() -> None:
    layer = moments.LayerMoments(torch.tensor([2.0, 6.0, 20.0]), torch.tensor([1.0]), 1e-5)
    assert moments.norm_distance(layer.sums, layer).item() == pytest.approx(3 + (10 - 9 - 1))  # shift 3, var 1
    past = torch.tensor([[1.0], [5.0]])
    mixed = moments.LayerMoments(layer.sums, layer.running_var, 1e-5, past, 0.9)
    shift, var = 0.1 * 3 + 0.9 * 1, 0.1 * 1 + 0.9 * 5
    assert moments.norm_distance(layer.sums, mixed).item() == pytest.approx(shift + var - 1)


def test_views_move_pixels_and_invent_none() -> None:
    x = torch.arange(64.0).view(1, 1, 8, 8)
    still, moved = torch.tensor([[0.5, 0.5, 0.9, 0.5]]), torch.tensor([[0.0, 0.99, 0.1, 0.0]])
    for view in (views.jitter, views.crop):
        black = (torch.full((1, 1, 1), -1.0),) if view is views.crop else ()
        assert torch.equal(view(x, still, True, *black), x)
    assert torch.equal(views.jitter(x, moved, False), x.roll((1, -1), (2, 3)))
    assert torch.equal(views.jitter(x, moved, True), x.roll((1, -1), (2, 3)).flip(3))
    padded = F.pad(x, (1, 1, 1, 1), value=-1.0)
    assert torch.equal(views.crop(x, moved, False, torch.full((1, 1, 1), -1.0)), padded[:, :, :8, 2:])
    assert torch.allclose(views.local(x, torch.tensor([[0.3, 0.7, 0.9, 1.0]]), True), x)
    quarter = views.local(x, torch.tensor([[0.0, 0.0, 0.9, 0.0]]), False)
    assert torch.allclose(quarter[0, 0, 1:-1, 1], x[0, 0, 0, 0] + 0.25 + 8 * (torch.arange(1.0, 7) * 0.5 - 0.25))


@pytest.mark.parametrize("method", METHODS)
def test_the_pool_holds_the_best_images_with_the_teachers_answer(method: str) -> None:
    rate = {"nayer": 10.0, "fast": 2.0}.get(method, 3.0)
    over = {"inversion": {"steps": 6}, "generator": {"lr": rate}, "replay": {"storage": "fp16", "augment": False}}
    built = build(method, over=over)
    assert built.teacher and built.sources.pool
    steps = list(watched(built))
    losses_met = [loss for loss, _ in steps]
    best = losses_met.index(min(losses_met))
    assert len(steps) == 6 and len({x.sum().item() for _, x in steps}) == 6
    assert 0 < best < 5, "the case has to get better first and worse in the end"
    x, t = built.sources.pool.draw(0, 1, 0)
    assert torch.equal(x, steps[best][1].half().float())
    with torch.no_grad():
        assert torch.allclose(t.logits, built.teacher.module(x), atol=1e-5)


def test_a_worse_step_is_not_kept() -> None:
    built = build("deepinversion", over={"inversion": {"steps": 8}, "generator": {"lr": 30.0}})
    assert built.sources.pool
    steps = list(watched(built))
    best = min(range(8), key=lambda step: steps[step][0])
    assert best < 7, "the case has to get worse in the end"
    kept = built.sources.pool.draw(0, 1, 0)[0]
    distances = [(kept - x).abs().max() for _, x in steps]
    assert distances.index(min(distances)) == best


@pytest.mark.parametrize("method", METHODS)
def test_an_image_turn_leaves_student_and_teacher_as_they_were(method: str) -> None:
    built = build(method)
    assert built.teacher
    for module in (built.teacher.module, built.student.module):  # they agree on a class, but not on how likely it is
        bias = layers.head(module).bias
        assert isinstance(bias, Tensor)
        bias.data[3] += 2
    still = [module.state_dict() for module in (built.teacher.module, built.student.module)]
    before = [{key: value.clone() for key, value in state.items()} for state in still]
    values = built.play(0, 0).values
    assert values["adversarial"] > 0 and values["target"] > 0
    for old, new in zip(before, still, strict=True):
        assert all(torch.equal(value, new[key]) for key, value in old.items())
    built.play(0, 1)
    assert not all(torch.equal(value, still[1][key]) for key, value in before[1].items())


def test_classes_are_even_and_latents_learn() -> None:
    built = build("cmi", over={"batch_size": 20})
    assert maker(built)._classes(0, 0, 0).bincount().tolist() == [2] * 10
    assert not torch.equal(maker(built)._classes(0, 0, 0), maker(built)._classes(1, 0, 0))
    built.play(0, 0)
    assert not torch.equal(maker(built).batch.start, maker(built)._drawn(0, 0, 0))


def test_a_generator_begins_anew_or_where_it_has_learnt_to() -> None:
    def start_of(built: Machine, index: int) -> dict[str, Tensor]:
        generator = maker(built).generator
        assert generator
        maker(built)._begin(index, 0, 0)
        return {key: value.clone() for key, value in generator.state_dict().items() if "weight" in key}

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.equal(value, b[key]) for key, value in a.items())

    anew, learnt = build("cmi"), build("fast", over={"inversion": {"steps": 1}})
    before = [start_of(built, 0) for built in (anew, learnt)]
    for built in (anew, learnt):
        built.play(0, 0)
    assert same(start_of(anew, 0), before[0]) and not same(start_of(anew, 1), before[0])
    after = start_of(learnt, 1)
    assert not same(after, before[1])
    for key, weights in after.items():  # Adam's first step, of size lr times the steps, against the gradient's sign
        moved = (weights - before[1][key]).abs()
        assert moved.max() <= 2e-3 * 1.001 and moved.median() == pytest.approx(2e-3, rel=0.05), key


def test_what_lasts_is_a_bank_of_features_and_an_average_of_statistics() -> None:
    built = build("cmi")  # batches of 8, a bank of 12
    bank = maker(built).lasting["memory"].get_buffer("bank")
    built.play(0, 0)
    assert (bank[:, :8].flatten(2).norm(dim=2) > 0).all() and (bank[:, 8:] == 0).all()
    first = bank.clone()
    built.play(1, 0)
    assert torch.equal(bank[:, 4:8], first[:, 4:8]) and not torch.equal(bank[:, :4], first[:, :4])
    assert (bank[:, 8:].norm(dim=2) > 0).all()
    fast = build("fast", over={"inversion": {"steps": 1}})
    past = maker(fast).lasting["memory"].get_buffer("past_0")
    fast.play(0, 0)
    once = past.clone()
    fast.play(1, 0)
    assert once.norm() > 0 and not torch.equal(past, once)
    assert (past - once).norm() < 0.2 * once.norm(), "nine tenths of it are the past's"


def test_a_short_run_takes_fewer_steps_and_warms_up_by_share() -> None:
    for rounds, expected in ((1, 5), (12, 60), (40, 200), (400, 200)):
        assert num_steps(resolve.resolve("digits", None, {"method": "cmi", "rounds": rounds})) == expected
    assert num_steps(resolve.resolve("digits", None, {"method": "fast", "rounds": 1})) == 10
    assert num_steps(resolve.resolve("digits", None, {"method": "cmi", "variant": "cifar10"})) == 200
    built = build("fast", over={"rounds": 10, "adversarial_after": 0.2, "inversion": {"steps": 1}})
    found = ["adversarial" in play_round(built, index)[0] for index in range(3)]
    assert found == [False, False, True]


def test_replayed_images_are_seen_in_crops_and_the_teacher_is_asked_of_them() -> None:
    built = build("cmi", over={"student": {"attention": 10.0}})
    assert built.teacher and built.sources.pool
    built.play(0, 0)
    assert built.play(0, 1).values["attention"] > 0
    x, t = built.sources.lesson(0, 2, 0)
    plain, _ = built.sources.pool.draw(0, 2, 0)
    assert x.shape == plain.shape and not torch.equal(x, plain)
    with torch.no_grad():
        assert torch.equal(t.logits, built.teacher.module(x))


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_is_not_finite_stops_a_batch(method: str) -> None:
    over = {"teacher": {"network": slopes.TEACHER, "checkpoint": "untrained"}, "inversion": {"steps": 2}}
    message = "the gradient of generator (generator/gradient_norm) is not finite"
    assert slopes.skipped(build(method, over=over), 0) == [message, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_clipped_as_a_whole(method: str) -> None:
    """Images or latents, the generator that they share, and the contrastive head: one norm over all of them."""
    built = build(method, over={"inversion": {"steps": 1}, "generator": {"clip": 1e-3, "lr": 1e-9}})
    engine = maker(built).engine
    found: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        found.extend(p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"])

    for optimizer in filter(None, engine._kept[:1]):
        optimizer.register_step_pre_hook(note)
    begin = engine.begin

    def begin_noted() -> None:
        begin()
        engine.optimizer.register_step_pre_hook(note)

    engine.begin = begin_noted  # type: ignore[method-assign]
    built.play(0, 0)
    assert torch.cat(found).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert maker(built).player.gradient_norm is not None
    assert maker(built).player.gradient_norm.item() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_a_batch_are_resumed_to_the_bit(method: str, tmp_path: Path) -> None:
    straight, first, second, blank = (build(method, over={"micro_batches": 2}) for _ in range(4))

    def play(built: Machine, index: int) -> None:
        for place in range(len(built.turns)):
            for part in range(2):
                built.play(index, place, part)

    for index in (0, 1):
        play(straight, index)
    play(first, 0)
    checkpoint.store(tmp_path, first.players, {"round": 1}, keep=1, others=first.sources.kept(1))
    for built in (second, blank):
        checkpoint.restore(tmp_path, built.players, take=built.sources.take)
    if method != "deepinversion":  # nothing of it but the pool lasts
        for parameter in maker(blank).lasting.parameters():
            torch.nn.init.zeros_(parameter)
    play(second, 1)
    play(blank, 1)
    ends = [built.student.module.state_dict() for built in (straight, second, blank)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert (method == "deepinversion") == all(torch.equal(value, ends[2][key]) for key, value in ends[0].items())


@pytest.mark.usefixtures("no_curves")
def test_a_run_shows_what_the_pool_holds(tmp_path: Path) -> None:
    quick = {"steps": 2, "rounds": 1}
    words = {"method": "deepinversion", "rounds": 2, "student_steps": 2, "batch_size": 16, "inversion": quick}
    over = {"data": {"name": "none"}, "tracking": {"uri": "none"}, "teacher": {"checkpoint": "untrained"}}
    result = distill.distill(resolve.resolve("digits", None, merge(words, over)), tmp_path / "run")
    assert 0 <= result["agreement"] <= 1 and result["agreement_on"] == "generated"
    pictures = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert pictures == ["round-00000001.png", "round-00000002.png"], "before the first round there is nothing to show"
    built = build("fast", over={"replay": {"storage": "fp16"}})
    assert not built.networks().generates
    built.play(0, 0)
    assert built.sources.pool
    held = {row.numpy().tobytes() for row in built.sources.pool.draw(0, 1, 0)[0]}
    assert {row.numpy().tobytes() for row in built.networks().generate(32, "samples")} <= held


@pytest.mark.parametrize(
    ("method", "recipe", "over", "message"),
    [
        ("cmi", "camvid-smoke", {}, "weights.target=0.5: an image is made for one class, and the task segmentation"),
        ("deepinversion", "digits", {"student": {"attention": 1.0}}, "the pool keeps no feature maps"),
        ("fast", "digits", {"replay": {"share": 0.5}}, "method=fast has no replay, all its student turns use the pool"),
        ("ddad", "digits", {"weights": {"contrastive": 1.0}}, "weights.contrastive=1.0: method=ddad keeps no views"),
        ("ddad", "camvid-smoke", {"weights": {"target": 1.0}}, "weights.target=1.0: an image is made for one class"),
        (
            "ddad",
            "digits",
            {"inversion": {"steps": 9}},
            "inversion.steps=9: method=ddad makes no batch by many steps: se",
        ),
        (
            "dfad",
            "digits",
            {"inversion": {"rounds": 9}},
            "inversion.rounds=9: method=dfad makes no batch by many steps",
        ),
        ("zskt", "digits", {"inversion": {"latent_lr": 0.1}}, "inversion.latent_lr=0.1: method=zskt makes no batch by"),
        ("dafl", "digits", {"inversion": {"momentum": 0.9}}, "inversion.momentum=0.9: method=dafl makes no batch by"),
        ("kd", "digits", {"inversion": {"bank": 64}}, "inversion.bank=64: method=kd generates no images: set 4096"),
        (
            "fast",
            "digits",
            {"inversion": {"bank": 64}},
            "inversion.bank=64: method=fast has weights.contrastive=0, so no",
        ),
        ("cmi", "digits", {"inversion": {"steps": 0}}, "inversion.steps=0: expected at least 1"),
        ("cmi", "digits", {"inversion": {"momentum": 1.0}}, "inversion.momentum=1.0: expected a number in [0, 1)"),
        ("cmi", "digits", {"adversarial_after": 1.0}, "adversarial_after=1.0: expected a share of the rounds"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(method: str, recipe: str, over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build(method, recipe, over)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_probes_what_the_pool_holds(tmp_path: Path) -> None:
    built = build("cmi", over={"replay": {"storage": "fp16"}})
    built.play(0, 0)
    checkpoint.store(tmp_path, built.players, {"round": 1}, keep=1, others=built.sources.kept(1))
    assert built.sources.pool
    held = {row.numpy().tobytes() for row in built.sources.pool.draw(0, 1, 0)[0]}
    x = next(generated.images(built.config, tmp_path / "round-00000001.safetensors", "probe", 8))
    assert len(x) == 8 and {row.numpy().tobytes() for row in x} <= held
