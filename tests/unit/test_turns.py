"""Whose turn it is: in a turn one network's parameters and buffers move, the others' stay as they are to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from harness import config as config_module
from harness import methods
from harness.config.parse import Overlay, merge
from harness.distributed.runtime import Runtime
from harness.distributed.zero import autocast
from harness.errors import Diverged, UserError
from harness.methods import terms
from harness.networks import roles
from harness.networks.layers import evaluating
from harness.training.machine import Machine
from tests import moving_buffers

SMALL: Overlay = {
    "task": "classification",
    "classes": 4,
    "rounds": 4,
    "batch_size": 8,
    "student_steps": 2,
    "teacher": {"network": "cnn8", "checkpoint": "untrained"},
    "student": {"network": "cnn4"},
    "generator": {"latent_size": 8, "width": 8},
    "input": {"size": 8},
}


def build(over: Overlay | None = None) -> Machine:
    config = config_module.build(merge(SMALL, over or {}))
    turns = methods.METHODS[config.method].turns(config)
    return Machine(config, Runtime(config), turns, roles.teacher(config))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


def modules(built: Machine) -> dict[str, nn.Module]:
    assert built.teacher and built.generator
    return {"teacher": built.teacher.module, "student": built.student.module, "generator": built.generator.module}


@pytest.mark.parametrize(("turn", "learner"), [(0, "student"), (2, "generator")])
def test_a_turn_changes_its_player_alone(turn: int, learner: str) -> None:
    built = build()
    before = {name: state(module) for name, module in modules(built).items()}
    built.play(0, turn)
    moved = {name: changed(before[name], module) for name, module in modules(built).items()}
    assert moved.pop(learner) == set(before[learner]), "every parameter and buffer of the learner moves"
    assert moved == {name: set() for name in moved}
    for module in modules(built).values():
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("network", ["instance", "spectral"])
def test_other_buffers_than_those_of_batch_norm_move_in_the_players_own_turn_alone(network: str) -> None:
    built = build({"student": {"network": f"{moving_buffers.__file__}:{network}"}})
    student = built.student.module
    before = state(student)
    gradient = built.play(0, 2).total
    assert gradient.isfinite() and not changed(before, student)
    built.play(0, 0)
    assert built.student.moving and changed(before, student) >= set(built.student.moving)


def test_a_buffer_that_moves_and_is_in_no_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match=r"writes to its buffer 1\.calls in training, .* persistent=True"):
        build({"student": {"network": f"{moving_buffers.__file__}:unsaved"}})


@pytest.mark.parametrize("term", ["adversarial", "batch_norm"])
def test_each_discriminator_gives_the_generator_a_gradient(term: str) -> None:
    others = {name: 0.0 for name in ("adversarial", "batch_norm") if name != term}
    built = build({"weights": others})
    before = state(modules(built)["generator"])
    values = built.play(0, 2).values
    assert values[term] > 0
    assert "body.2.weight" in changed(before, modules(built)["generator"])


def test_the_generators_turn_ascends_disagreement_and_descends_the_distance() -> None:
    for weights, term, sign in (({"batch_norm": 0.0}, "adversarial", 1), ({"adversarial": 0.0}, "batch_norm", -1)):
        built = build({"weights": weights, "rounds": 1000, "generator": {"lr": 1e-2, "schedule": "constant"}})
        values = [built.play(0, 2).values[term].item() for _ in range(30)]  # the same latents every time
        assert sign * (values[-1] - values[0]) > 0


def test_terms_of_weight_zero_are_not_computed_and_all_can_be() -> None:
    assert set(build({"weights": {"batch_norm": 0.0}}).play(0, 2).values) == {"adversarial", "entropy", "top_class"}
    everything = dict.fromkeys(("one_hot", "class_balance", "activation", "tv", "l2"), 0.1)
    values = build({"weights": everything}).play(0, 2).values
    assert set(values) == {"adversarial", "batch_norm", *everything, "entropy", "top_class"}


def test_a_share_of_the_rounds_begins_in_the_round_that_it_names() -> None:
    over: Overlay = {"rounds": 25, "adversarial_after": 0.28, "student": {"features_until": 0.28, "features": 1.0}}
    config = config_module.build(merge(SMALL, over))
    weights = [(terms.weights_of(config, index), terms.student_weights_of(config, index)) for index in (6, 7)]
    assert [generator["adversarial"] for generator, _ in weights] == [0.0, 1.0]
    assert [student["features"] for _, student in weights] == [1.0, 0.0]


def test_a_weight_follows_its_schedule() -> None:
    built = build({"weights": {"batch_norm": [[0, 0.0], [2, 0.5]]}})
    assert "batch_norm" not in built.play(0, 2).values
    terms = built.play(2, 2)
    assert torch.allclose(terms.total, 0.5 * terms.values["batch_norm"] - terms.values["adversarial"])


def test_draws_depend_on_seed_round_and_turn() -> None:
    first = build()
    assert first.generator is not None
    x = [first.sources.latents(*place, 0) for place in ((0, 0), (0, 1), (1, 0))]
    x.append(build({"seed": 1}).sources.latents(0, 0, 0))
    assert len({tuple(z.flatten().tolist()) for z, _ in x}) == 4
    assert torch.equal(x[0][0], build().sources.latents(0, 0, 0)[0])


def test_an_image_is_made_for_the_class_of_its_latent() -> None:
    built = build({"weights": {"adversarial": 0.0, "batch_norm": 0.0, "target": 2.0}})
    assert built.generator and built.teacher
    z, y = built.sources.latents(0, 2, 0)
    assert y is not None
    with torch.no_grad():
        t = built.teacher.module(built.generator.frozen_forward(z))
    terms = built.play(0, 2)
    by_hand = (t.logsumexp(1) - t.gather(1, y[:, None])[:, 0]).mean()
    assert torch.allclose(terms.values["target"], by_hand) and torch.allclose(terms.total, 2 * by_hand)
    plain, nobody = build().sources.latents(0, 2, 0)
    assert nobody is None
    centres = z - plain
    assert all(torch.allclose(centres[y == c], centres[y == c][:1], atol=1e-6) for c in y.unique())
    assert (torch.cdist(centres, centres)[y[:, None] != y] > 0.1).all(), "each class has a centre of its own"


def test_the_centres_of_classes_are_at_their_distance_from_zero() -> None:
    def centres(distance: float) -> Tensor:
        large: Overlay = {"generator": {"latent_size": 10_000}}
        over = merge(large, {"weights": {"target": 1.0}, "generator": {"class_distance": distance}})
        return build(over).sources.latents(0, 2, 0)[0] - build(large).sources.latents(0, 2, 0)[0]

    assert torch.allclose(centres(3.0).norm(dim=1), torch.tensor(3.0), atol=0.1)
    assert not centres(0.0).any()


def test_dropout_is_reseeded_so_that_a_turn_repeats() -> None:
    over = {"student": {"network": "torchvision:mobilenet_v2"}, "input": {"size": 32}}
    one, two = build(over), build(over)
    torch.rand(7)  # the state of the global generator must not matter
    first = one.play(0, 0)
    torch.rand(3)
    assert torch.equal(first.total, two.play(0, 0).total)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    built = build()
    with torch.no_grad():
        for parameter in built.student.parameters:
            parameter.fill_(torch.inf)
    assert built.generator is not None
    before = [parameter.clone() for parameter in built.generator.parameters]
    with pytest.raises(Diverged, match="generator/adversarial is not finite"):
        built.play(0, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, built.generator.parameters, strict=True))


def test_the_latch_skips_updates_on_the_device_itself() -> None:
    """Where the host reads the latch late, the fused optimiser must already have skipped."""
    built = build()
    built.health.verify = lambda: None  # type: ignore[method-assign]  # as on a GPU between two reports
    good = [parameter.clone() for parameter in built.student.parameters]
    built.health._blame.fill_(1)
    built.play(0, 0)
    assert all(torch.equal(a, b) for a, b in zip(good, built.student.parameters, strict=True))


def test_a_teacher_without_batch_norm_is_refused() -> None:
    over = {"teacher": {"network": "torchvision:alexnet"}, "input": {"size": 64}}
    with pytest.raises(UserError, match=r"set weights\.batch_norm=0"):
        build(over)
    assert build(merge(over, {"weights": {"batch_norm": 0.0}})).play(0, 2).values["adversarial"] > 0


def test_a_method_without_a_generator_needs_no_batch_norm() -> None:
    over = {"method": "kd", "teacher": {"network": "torchvision:alexnet"}, "input": {"size": 64}}
    assert build(over).generator is None


def test_a_launcher_with_more_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"strategy=single runs on one process, the launcher started 2"):
        build({"distributed": {"strategy": "single"}})
    with pytest.raises(UserError, match=r"asked for on 3 processes and finds 2"):
        build({"distributed": {"world_size": 3}})
    with pytest.raises(UserError, match=r"asked for on 3 to 4 processes and finds 2"):
        build({"distributed": {"world_size": 4, "min_world_size": 3}})
    with pytest.raises(UserError, match=r"batch_size=8 in 8 micro-batch"):
        build({"micro_batches": 8})
    with pytest.raises(UserError, match=r"WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR"):
        build()


@pytest.mark.parametrize("deepspeed", [False, True])
def test_bf16_ends_where_a_network_is_scored(deepspeed: bool) -> None:
    module, x = build().student.module, torch.rand(4, 3, 8, 8)
    plain = copy.deepcopy(module).eval()
    trained = build({"precision": "bf16"}).student.module
    trained.load_state_dict(plain.state_dict())
    if deepspeed:
        trained = autocast(copy.deepcopy(plain), torch.device("cpu"), "bf16")
    rounded = trained.eval()(x)
    with evaluating([trained]):
        scored = trained(x)
    assert torch.equal(scored, plain(x)) and not torch.equal(scored, rounded)
    assert torch.equal(trained(x), rounded), "afterwards it is as it was"


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
@pytest.mark.parametrize("method", [name for name, method in methods.METHODS.items() if method.data_free])
def test_other_precisions_agree_with_fp32(method: str, precision: str) -> None:
    over = merge({"method": method}, merge(methods.METHODS[method].variants["paper"], {"student_steps": 2}))
    if method in ("deepinversion", "cmi", "fast", "nayer"):
        over = merge(over, {"inversion": {"steps": 2}})
    full, other = build(over), build(merge(over, {"precision": precision}))
    # Steps of Adam go by the sign of a gradient, however small it is: images that some steps made are a little apart.
    exact = 1e-2 if full.inversion else 1e-4
    for turn in range(len(full.turns)):
        expected, found = full.play(0, turn).total.item(), other.play(0, turn).total.item()
        assert found == pytest.approx(expected, rel=0.1 if precision == "bf16" else exact)
