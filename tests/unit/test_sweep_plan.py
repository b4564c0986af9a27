"""The plan of a sweep: what is refused before it starts, the configurations of its trials, its folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.training.inversion import num_steps
from tests.sweeps import OVERRIDES, make_plan
from tune import checks, configs, plan, spaces


def test_trials_with_other_student_steps_have_the_same_number_of_student_updates(tmp_path: Path) -> None:
    made = make_plan(tmp_path)
    base = configs.student_updates(made.base)
    assert base == 40
    for steps in (1, 2, 10):
        config = configs.of_sample(made, {"student_steps": steps})
        assert (config.student_steps, configs.student_updates(config)) == (steps, base)
    assert configs.student_updates(configs.of_sample(made, {"student_steps": 3})) == 42
    assert configs.of_sample(made, {"discrepancy": "kl"}).student_discrepancy == "kl"


def test_schedules_are_rescaled_with_the_rounds_of_a_trial(tmp_path: Path) -> None:
    overrides = {
        **OVERRIDES,
        "rounds": 40,
        "weights": {"tv": [[0, 1.0], [8, 0.5], [20, 0.25]], "l2": 0.5},
        "student": {"network": "cnn4", "attention": [[0, 0.0], [1, 1.0], [2, 3.0], [30, 2.0]],
                    "features": [[0, 1.0], [20, 2.0]], "schedule": "multistep", "milestones": [0.5]},
        "adversarial_after": 0.25,
    }  # fmt: skip
    made = make_plan(tmp_path, space=spaces.find("turns"), overrides=overrides)
    slow = configs.of_sample(made, {"student_steps": 10, "weights.l2": 0.1})
    assert slow.rounds == 20
    assert slow.weights.tv == [[0, 1.0], [4, 0.5], [10, 0.25]]
    assert slow.student.attention == [[0, 1.0], [1, 3.0], [15, 2.0]], "two values start in one round: the last"
    assert slow.student.features == [[0, 1.0], [10, 2.0]], "every field that can hold a schedule"
    assert slow.weights.l2 == 0.1
    assert (slow.student.milestones, slow.adversarial_after) == ([0.5], 0.25), "shares of a run do not change"
    quick = configs.of_sample(made, {"student_steps": 1})
    assert quick.rounds == 200
    assert quick.weights.tv == [[0, 1.0], [40, 0.5], [100, 0.25]]
    assert configs.of_sample(made, {"student_steps": 5}) == made.base == configs.of_sample(made, {})


def test_restarts_of_the_generator_are_rescaled_with_the_rounds(tmp_path: Path) -> None:
    overrides = {**OVERRIDES, "rounds": 40, "student_steps": 4, "method": "nayer", "generator": {"restart": 10}}
    made = make_plan(tmp_path, space=spaces.find("turns"), overrides=overrides)
    for steps, restart in ((2, 20), (4, 10), (8, 5)):
        config = configs.of_sample(made, {"student_steps": steps})
        assert (config.rounds // config.generator.restart, config.generator.restart) == (4, restart)


def test_the_image_steps_of_a_batch_do_not_depend_on_student_steps(tmp_path: Path) -> None:
    overrides = {**OVERRIDES, "rounds": 10, "student_steps": 4, "method": "deepinversion",
                 "inversion": {"rounds": 20, "steps": 40}}  # fmt: skip
    made = make_plan(tmp_path, space=spaces.find("turns"), overrides=overrides)
    for steps, rounds in ((4, 20), (2, 40), (8, 10)):
        config = configs.of_sample(made, {"student_steps": steps})
        assert (config.inversion.rounds, num_steps(config)) == (rounds, 20)
    sampled = configs.of_sample(made, {"student_steps": 2, "inversion.rounds": 30})
    assert sampled.inversion.rounds == 30, "a sampled value is not rescaled"
    ddad = make_plan(tmp_path)
    assert configs.of_sample(ddad, {"student_steps": 1}).inversion == ddad.base.inversion


def mistakes() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"searcher": "hyperband"}, "--searcher 'hyperband': expected one of optuna, random, grid"
    yield {"scheduler": "ashe"}, "--scheduler 'ashe': expected one of asha, none, pbt"
    yield {"objective": "miou"}, "--objective 'miou': expected one of agreement, kl, confidence, accuracy"
    yield (
        {"overrides": {**OVERRIDES, "method": "kd"}},
        "method=kd generates no images for a probe",
    )
    yield (
        {"overrides": {**OVERRIDES, "max_minutes": 3}},
        "max_minutes=3 would end each run early: limit the sweep with --minutes",
    )
    yield (
        {"overrides": {**OVERRIDES, "weights": {"one_hot": 1}}},
        "weights.one_hot is given as an argument",
    )
    yield {"trials": 0}, "--trials 0: expected a number above 0"
    yield {"cpus": 0.0}, "--cpus 0: expected a number above 0"
    yield {"gpus": -1.0}, "--gpus -1: expected a part of one GPU"
    yield {"gpus": 1.5}, "--gpus 1.5: expected a part of one GPU, such as 0.5, or a whole number"
    yield {"gpus": math.nan}, "--gpus nan: expected a part"
    two = {**OVERRIDES, "distributed": {"world_size": 2}}
    yield {"gpus": 0.5, "overrides": two}, "--gpus 0.5: each of the 2 processes of a trial needs a whole GPU"
    yield {"searcher": "grid", "trials": 5}, "--trials 5: the grid of this space has 81 points: leave --trials out"
    pbt = {"scheduler": "pbt", "searcher": "random"}
    yield (
        {**pbt, "space": spaces.find("turns")},
        "pbt changes values during a run; only weights.* can change, not student_steps",
    )
    yield {**pbt, "searcher": "optuna"}, "pbt needs --searcher random, not optuna"
    yield {**pbt, "trials": 1}, "--trials 1: a population needs at least 2 trials"
    yield {**pbt, "parallel": 1}, "--parallel does not work with --scheduler pbt"


@pytest.mark.parametrize(("fields", "message"), list(mistakes()))
def test_an_inconsistent_plan_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        checks.check(make_plan(tmp_path, **fields))
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_objective_on_real_data_needs_data_and_is_called_an_oracle(tmp_path: Path) -> None:
    without = {**OVERRIDES, "data": {"name": "none"}, "teach": {"automatic": False}}
    with pytest.raises(
        UserError, match=r"--objective accuracy needs real data, and data\.name=none: use --objective agreement"
    ):
        checks.check(make_plan(tmp_path, objective="accuracy", overrides=without))
    with_data = make_plan(tmp_path, objective="accuracy")
    checks.check(with_data)
    assert "ORACLE" in with_data.objective_text
    assert "data-free" in make_plan(tmp_path).objective_text


def test_seeds_are_lists_and_ranges() -> None:
    assert plan.seeds("0-4") == [0, 1, 2, 3, 4]
    assert plan.seeds("0,7,2-3") == [0, 7, 2, 3]
    assert plan.seeds(None) == []
    for text in ("", "x", "4-0", "1,1", "-1"):
        with pytest.raises(UserError, match="expected seeds such as 0-4"):
            plan.seeds(text)


def test_a_folder_belongs_to_one_sweep(tmp_path: Path) -> None:
    mine = make_plan(tmp_path)
    with pytest.raises(UserError, match="--resume: there is no sweep in"):
        plan.record(mine, resume=True)
    plan.record(mine, resume=False)
    with pytest.raises(UserError, match="holds this sweep already: --resume continues it"):
        plan.record(mine, resume=False)
    plan.record(dataclasses.replace(mine, minutes=3.0, cpus=2.0), resume=True)
    with pytest.raises(UserError, match=r"belongs to another sweep \(trials is 4 in the folder, 5 in this command\)"):
        plan.record(dataclasses.replace(mine, trials=5), resume=True)
    other = make_plan(tmp_path, overrides={**OVERRIDES, "student": {"network": "cnn4", "lr": 0.2}})
    with pytest.raises(UserError, match=r"student\.lr is 0\.1 in the folder, 0\.2 in this command"):
        plan.record(other, resume=True)
    (mine.folder / "sweep.json").write_text("[]")
    with pytest.raises(UserError, match=r"sweep\.json cannot be read \(list instead of an object\)"):
        plan.record(mine, resume=True)
    foreign = dataclasses.replace(mine, folder=tmp_path)
    with pytest.raises(UserError, match=r"holds other files \(sweep\): give another --output"):
        plan.record(foreign, resume=False)
