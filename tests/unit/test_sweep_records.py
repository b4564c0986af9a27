"""Limits, branches of a population, the best trial and correlations, from run folders and records without training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from harness.run import folder as run_folder
from tests.sweeps import OVERRIDES, SAMPLE, add_rounds, make_plan, make_population, make_record
from tune import analysis, limits, population, records


def test_a_changed_schedule_drops_the_values_that_would_come_later() -> None:
    assert population.schedule(1.0, 1.0, 5) == 1.0
    assert population.schedule(1.0, 2.0, 5) == [[0, 1.0], [5, 2.0]]
    assert population.schedule([[0, 1.0], [5, 2.0]], 3.0, 5) == [[0, 1.0], [5, 3.0]]
    assert population.schedule([[0, 1.0], [5, 2.0]], 3.0, 7) == [[0, 1.0], [5, 2.0], [7, 3.0]]


def test_the_rounds_of_a_sweep_are_counted_once_before_and_after_a_restart(tmp_path: Path) -> None:
    plan, results, trained = make_population(tmp_path, total_rounds=18)
    interrupted = plan.trials_folder / f".{results[-1][0].name}.77"
    shutil.copytree(results[-1][0], interrupted)
    limits.start(plan)
    restarted = limits.RoundCounter(plan.folder)
    assert restarted.total == trained
    for path, index in results[8:]:  # the trial restarts from an earlier checkpoint and reports again
        restarted.add(path, index)
    assert restarted.total == trained
    assert restarted.limit_reached() == limits.reached(plan.folder) == "18 of 18 rounds were trained"

    first = dataclasses.replace(plan, folder=tmp_path / "first")  # the same sweep before its first trial
    limits.start(first)
    counter = limits.RoundCounter(first.folder)
    for path, index in results:
        assert counter.limit_reached() is None
        counter.add(path, index)
    assert counter.total == trained
    assert counter.limit_reached() == limits.reached(first.folder) == "18 of 18 rounds were trained"

    limits.start(dataclasses.replace(plan, total_rounds=19))
    assert limits.reached(plan.folder) is None
    assert limits.RoundCounter(plan.folder).limit_reached() is None


def test_a_limit_is_reported_only_if_it_prevented_something(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, trials=2)
    for trial_id, outcome, expected in (("a", "finished", "text"), ("b", "pruned", None), ("c", "stopped", "text")):
        records.add(plan, make_record(trial_id, outcome, 0.5), lambda line: None)
        records.record_end(plan, "text")
        assert records.limit(plan) == expected


def test_a_limit_decides_between_stopped_and_pruned(tmp_path: Path) -> None:
    plan, results, trained = make_population(tmp_path)
    result = {"folder": str(results[-1][0]), "objective": 0.18, "round": 8, "student_updates": 40}
    limits.start(dataclasses.replace(plan, total_rounds=trained + 1))
    assert records.from_result(plan, "taker", SAMPLE, result, None).outcome == "pruned"
    limits.start(dataclasses.replace(plan, total_rounds=trained))
    record = records.from_result(plan, "taker", SAMPLE, result, None)
    assert (record.outcome, record.folder) == ("stopped", f"trials/{results[-1][0].name}")
    assert records.from_result(plan, "taker", SAMPLE, result, "OutOfMemoryError: ...").outcome == "failed"
    assert records.from_result(plan, "taker", SAMPLE, {**result, "outcome": "finished"}, None).outcome == "finished"


def test_the_evaluations_that_a_branch_copied_count_for_their_own_trial(tmp_path: Path) -> None:
    plan, results, _ = make_population(tmp_path, overrides={**OVERRIDES, "data": {"name": "digits"}})
    config, _ = run_folder.read_config(results[0][0])
    others = {f"t{index}": (0.1 * index, 0.2 * index) for index in range(3)}
    for trial_id, scores in others.items():
        add_rounds(plan.trials_folder / trial_id, config, range(1, 9), scores)
    trials = [make_record(trial_id, "finished", 0.5) for trial_id in ("donor", "taker", *others)]
    found = analysis.correlations(plan, plan.base, trials)
    assert [row["trials"] for row in found] == [5] * 8
    before, after = ([*pair, *others.values()] for pair in (((0.5, 0.5), (0.3, 0.2)), ((0.5, 0.5), (0.1, 0.4))))
    for row, expected in zip(found, [before] * 4 + [after] * 4, strict=True):
        assert row["spearman"] == analysis.spearman(*zip(*expected, strict=True)), row


def test_a_branch_keeps_the_schedules_of_weights_that_are_not_searched(tmp_path: Path) -> None:
    tv = [[0, 1.0], [6, 0.5]]
    _, results, _ = make_population(tmp_path, overrides={**OVERRIDES, "weights": {"tv": tv}})
    config, _ = run_folder.read_config(results[-1][0])
    assert (config.weights.tv, config.weights.adversarial) == (tv, [[0, 2.0], [4, 3.0]])


def test_an_interrupted_copy_is_not_a_trial(tmp_path: Path) -> None:
    plan, results, _ = make_population(tmp_path)
    shutil.copytree(results[-1][0], plan.trials_folder / f".{results[-1][0].name}.77")
    lines: list[str] = []
    records.add_lost_trials(plan, lines.append)
    assert sorted(record.id for record in records.trials(plan)) == ["donor", "taker"]
    assert all(line.startswith("lost trial, ") for line in lines), "they do not count among --trials"


def test_the_best_trial_is_a_finished_one_if_there_is_one() -> None:
    pruned, finished = make_record("a", "pruned", 0.9), make_record("b", "finished", 0.8)
    failed = make_record("c", "failed", 0.0)
    assert analysis.best([pruned, finished, failed]) == finished
    assert analysis.best([pruned, failed]) == pruned
    assert analysis.best([failed, make_record("d", "stopped", None)]) is None


def test_spearman_is_the_value_computed_by_hand() -> None:
    assert analysis.spearman([0.1, 0.2, 0.3], [1, 2, 9]) == pytest.approx(1.0)
    assert analysis.spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert analysis.spearman([1, 1, 1], [1, 2, 3]) is None
