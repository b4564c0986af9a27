"""A sweep without Ray: its plan, the probe, one trial, a population's lineage, and what is read out of the folders."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness import files, resolve
from harness.config import Config, flat, to_dict
from harness.errors import UserError
from harness.run import folder as run_folder
from harness.training import distill
from harness.training.inversion import num_steps
from tune import journal, limits, plan, probe, report, spaces, trial
from tune.journal import Entry
from tune.plan import PROBE, Plan
from tune.trial import Origin, Standing

OVER: dict[str, Any] = {
    "rounds": 8,
    "batch_size": 16,
    "teacher": {"network": "cnn8", "checkpoint": "untrained"},
    "student": {"network": "cnn4"},
    "generator": {"width": 8, "latent_size": 8},
    "tracking": {"uri": "none"},
    "pictures": False,
}
SAMPLE = {"weights.adversarial": 2.0, "weights.one_hot": 0.1}


def a_plan(folder: Path, **fields: Any) -> Plan:
    known: dict[str, Any] = {"space": spaces.find("loss_weights"), "trials": 4, "place": folder, **fields}
    return Plan("digits", None, known.pop("overrides", OVER), folder=folder / "sweep", **known)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan whose probe is made."""
    prepared = a_plan(tmp_path_factory.mktemp("prepared"))
    trial.default(prepared)
    return prepared


@pytest.fixture(scope="module")
def whole(prepared: Plan) -> list[Standing]:
    """A trial that nothing interrupted."""
    return list(trial.run(prepared, "whole", SAMPLE))


def weights(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "student.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_probe_is_made_at_four_times_of_the_default_run_and_kept(prepared: Plan) -> None:
    account = json.loads((prepared.probe_file.parent / "probe.json").read_text())
    found = probe.load(prepared.probe_file)
    assert account["rounds"] == [1, 2, 4, 8]
    assert account["sha256"] == found.sha256
    assert found.images.shape == (account["images"], 1, 8, 8)
    assert torch.bincount(found.answers.long(), minlength=10).tolist() == account["images_by_class"]
    assert max(account["images_by_class"]) <= 4 * (probe.NUM_IMAGES // 4 // 10)
    before = prepared.probe_file.stat().st_mtime_ns
    trial.default(prepared)
    assert prepared.probe_file.stat().st_mtime_ns == before
    assert sorted(path.name for path in prepared.probe_file.parent.iterdir()) == ["probe.json", "probe.safetensors"]


def test_the_probe_holds_what_the_default_runs_generator_shows_and_the_teacher_says(prepared: Plan) -> None:
    config = prepared.base
    last = probe.last_checkpoint(prepared.default_folder)
    assert last is not None and last.name == "round-00000008.safetensors"
    candidates = next(probe.generated(config, last, "probe", 8))
    found = probe.load(prepared.probe_file)
    kept = [bool((found.images == image).all((1, 2, 3)).any()) for image in candidates]
    assert all(kept), "the first batch is within every class's share"


def test_stages_fall_on_checkpoints() -> None:
    for rounds in (1, 7, 16, 240, 241, 40_000):
        found = probe.stages(rounds)
        assert max(found) == rounds
        assert all(stage % probe.interval(rounds) == 0 for stage in found if stage < rounds)
    assert probe.stages(240) == {24: 0.1, 60: 0.25, 120: 0.5, 240: 1.0}


def test_another_sweeps_probe_judges_where_it_suits(prepared: Plan, tmp_path: Path) -> None:
    overrides = {**OVER, "method": "dfad"}
    taken = a_plan(tmp_path, overrides=overrides, probe=prepared.folder)
    assert plan.check(taken).method == "dfad"
    assert plan.identity(taken) != plan.identity(a_plan(tmp_path, overrides=overrides))
    probe.adopt(prepared.folder, taken.probe_file)
    trial.default(taken)
    assert probe.load(taken.probe_file).sha256 == probe.load(prepared.probe_file).sha256
    names = sorted(path.name for path in taken.probe_file.parent.iterdir())
    assert names == ["probe.json", "probe.safetensors"]
    (last,) = [each for each in trial.run(taken, "own", {}) if each.outcome]
    judged = probe.judge(probe.load(prepared.probe_file), 16)
    assert last.agreement == judged(trial.student(taken.base, Path(last.folder)))


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"input": {"size": 12}}, r"its images are \(1, 8, 8\), this run's \(1, 12, 12\)"),
        ({"teacher": {"network": "cnn12", "checkpoint": "untrained"}}, "its answers are another teacher's"),
    ],
)
def test_another_sweeps_probe_is_refused_where_it_does_not(
    over: dict[str, Any], said: str, prepared: Plan, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        plan.check(a_plan(tmp_path, overrides={**OVER, **over}, probe=prepared.folder))
    with pytest.raises(UserError, match="the probe cannot be read"):
        plan.check(a_plan(tmp_path, probe=tmp_path))


def test_a_probe_that_was_changed_is_refused(prepared: Plan, tmp_path: Path) -> None:
    for name in ("probe.json", "probe.safetensors"):
        (tmp_path / name).write_bytes(prepared.probe_file.with_name(name).read_bytes())
    content = load_file(tmp_path / "probe.safetensors")
    save_file({**content, "images": content["images"] + 1}, tmp_path / "probe.safetensors")
    with pytest.raises(UserError, match="is not the probe this sweep began with"):
        probe.load(tmp_path / "probe.safetensors")


class Says(nn.Module):
    """Names the class that is written in the first pixel; logits [B, 3], or a map of it."""

    def __init__(self, is_map: bool) -> None:
        super().__init__()
        self.scale, self.is_map = nn.Parameter(torch.ones(())), is_map

    def forward(self, x: Tensor) -> Tensor:
        named = x[:, 0].long() if self.is_map else x[:, 0, 0, 0].long()
        logits = nn.functional.one_hot(named, 3).float() * self.scale
        return logits.movedim(-1, 1)


def test_agreement_is_the_mean_over_the_teachers_classes() -> None:
    said = torch.tensor([0, 0, 0, 1, 1])
    answers = torch.tensor([0, 0, 0, 0, 1], dtype=torch.int16)  # 3 of 4 and 1 of 1
    images = said[:, None, None, None].expand(5, 1, 2, 2).float()
    for size in (2, 5):
        assert probe.judge(probe.Probe(images, answers, ""), size)(Says(False)) == pytest.approx((3 / 4 + 1) / 2)
    maps = torch.tensor([[[0, 0], [1, 2]]], dtype=torch.int16)  # of class 0: both; of 1: none; of 2: none
    shown = torch.zeros(1, 1, 2, 2)
    assert probe.judge(probe.Probe(shown, maps, ""), 1)(Says(True)) == pytest.approx(1 / 3)


def test_a_trial_stands_eight_times_and_holds_what_it_said(prepared: Plan, whole: list[Standing]) -> None:
    assert [one.round for one in whole] == list(range(1, 9))
    assert [one.student_updates for one in whole] == [5 * one.round for one in whole]
    assert [one.outcome for one in whole] == [None] * 7 + ["finished"]
    assert all(one.objective == one.agreement and one.oracle is not None for one in whole)
    config, _ = run_folder.read_config(Path(whole[-1].folder))
    assert flat(config)["weights.adversarial"] == 2.0
    assert (config.tracking.model, config.pictures) == (False, False)
    judged = probe.judge(probe.load(prepared.probe_file), 16)
    assert judged(trial.student(config, Path(whole[-1].folder))) == whole[-1].agreement


def test_the_student_of_a_folder_is_the_averaged_one_where_the_run_averages(prepared: Plan) -> None:
    *_, last = trial.run(prepared, "averaged", {**SAMPLE, "student.average": 0.5})
    path = Path(last.folder)
    student = trial.student(run_folder.read_config(path)[0], path)
    assert equal({name: value.cpu() for name, value in student.state_dict().items()}, weights(path))
    assert probe.judge(probe.load(prepared.probe_file), 16)(student) == last.agreement


def test_a_trial_that_was_cut_off_goes_on_to_the_same_end(prepared: Plan, whole: list[Standing]) -> None:
    cut = trial.run(prepared, "cut", SAMPLE)
    assert [next(cut) for _ in range(3)] == [
        dataclasses.replace(one, folder=one.folder.replace("whole", "cut")) for one in whole[:3]
    ]
    cut.close()
    rest = list(trial.run(prepared, "cut", SAMPLE))
    assert [one.round for one in rest] == [4, 5, 6, 7, 8]
    assert [one.agreement for one in rest] == [one.agreement for one in whole[3:]]
    assert equal(weights(rest[-1].folder), weights(whole[-1].folder))
    (again,) = trial.run(prepared, "cut", SAMPLE)
    assert again == rest[-1]


def test_trials_of_other_turns_have_as_many_student_updates(prepared: Plan) -> None:
    base = plan.budget(prepared.base)
    assert base == 40
    for steps in (1, 2, 10):
        config = plan.configuration(prepared, {"student_steps": steps})
        assert (config.student_steps, plan.budget(config)) == (steps, base)
    assert plan.budget(plan.configuration(prepared, {"student_steps": 3})) == 42
    assert plan.configuration(prepared, {"discrepancy": "kl"}).student_discrepancy == "kl"


def test_whatever_is_counted_in_rounds_follows_the_rounds_of_a_trial(tmp_path: Path) -> None:
    overrides = {
        **OVER,
        "rounds": 40,
        "weights": {"tv": [[0, 1.0], [8, 0.5], [20, 0.25]], "l2": 0.5},
        "student": {"network": "cnn4", "attention": [[0, 0.0], [1, 1.0], [2, 3.0], [30, 2.0]],
                    "schedule": "multistep", "milestones": [0.5]},
        "adversarial_after": 0.25,
    }  # fmt: skip
    found = a_plan(tmp_path, space=spaces.find("turns"), overrides=overrides)
    slow = plan.configuration(found, {"student_steps": 10, "weights.l2": 0.1})
    assert slow.rounds == 20
    assert slow.weights.tv == [[0, 1.0], [4, 0.5], [10, 0.25]]
    assert slow.student.attention == [[0, 1.0], [1, 3.0], [15, 2.0]], "of two values from one round on, the later one"
    assert slow.weights.l2 == 0.1
    assert (slow.student.milestones, slow.adversarial_after) == ([0.5], 0.25), "shares of the run stay"
    quick = plan.configuration(found, {"student_steps": 1})
    assert quick.rounds == 200
    assert quick.weights.tv == [[0, 1.0], [40, 0.5], [100, 0.25]]
    assert plan.configuration(found, {"student_steps": 5}) == found.base == plan.configuration(found, {})


def test_a_batch_of_an_inverting_method_takes_as_many_image_steps_whatever_a_round_is(tmp_path: Path) -> None:
    overrides = {**OVER, "rounds": 10, "student_steps": 4, "method": "deepinversion",
                 "inversion": {"rounds": 20, "steps": 40}}  # fmt: skip
    found = a_plan(tmp_path, space=spaces.find("turns"), overrides=overrides)
    for steps, rounds in ((4, 20), (2, 40), (8, 10)):
        config = plan.configuration(found, {"student_steps": steps})
        assert (config.inversion.rounds, num_steps(config)) == (rounds, 20)
    sampled = plan.configuration(found, {"student_steps": 2, "inversion.rounds": 30})
    assert sampled.inversion.rounds == 30, "what is sampled is taken as it is"
    plain = a_plan(tmp_path, overrides=OVER)
    assert plan.configuration(plain, {"student_steps": 1}).inversion == plain.base.inversion


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        ({"student.lr": 1e30}, "is not finite"),
        ({"generator.network": "dcgan"}, "16"),
    ],
)
def test_a_trial_that_fails_says_why_and_scores_least(prepared: Plan, sample: dict[str, Any], error: str) -> None:
    *_, last = trial.run(prepared, f"bad-{next(iter(sample))}", sample)
    assert (last.outcome, last.objective) == ("failed", 0.0)
    assert error in (last.error or "")


def test_a_population_takes_over_a_state_and_records_the_schedule(prepared: Plan, whole: list[Standing]) -> None:
    population = dataclasses.replace(prepared, scheduler="pbt", folder=prepared.folder)
    donor = trial.run(population, "donor", SAMPLE)
    for _ in range(4):
        standing = next(donor)
    donor.close()
    changed = {**SAMPLE, "weights.adversarial": 3.0}
    branch = list(trial.run(population, "taker", changed, Origin(standing.folder, standing.round)))
    config, _ = run_folder.read_config(Path(branch[-1].folder))
    assert config.weights.adversarial == [[0, 2.0], [4, 3.0]]
    assert config.weights.one_hot == 0.1
    assert [one.round for one in branch] == [5, 6, 7, 8]
    assert Path(branch[-1].folder).name.startswith("taker-")
    over = {**OVER, "weights": {"adversarial": [[0, 2.0], [4, 3.0]], "one_hot": 0.1}}
    distill.distill(resolve.resolve("digits", None, over), prepared.folder / "again")
    assert equal(weights(branch[-1].folder), weights(prepared.folder / "again"))
    assert not equal(weights(branch[-1].folder), weights(whole[-1].folder))
    again = list(trial.run(population, "taker", changed, Origin(branch[1].folder, branch[1].round)))
    assert again[-1] == branch[-1], "its own state, with the values it has already, is no new branch"


def test_schedules_replace_what_never_came_to_pass() -> None:
    assert trial._schedule(1.0, 1.0, 5) == 1.0
    assert trial._schedule(1.0, 2.0, 5) == [[0, 1.0], [5, 2.0]]
    assert trial._schedule([[0, 1.0], [5, 2.0]], 3.0, 5) == [[0, 1.0], [5, 3.0]]
    assert trial._schedule([[0, 1.0], [5, 2.0]], 3.0, 7) == [[0, 1.0], [5, 2.0], [7, 3.0]]


REAL = "evaluation/student_accuracy"


def a_run(path: Path, config: Config, rounds: range, scores: tuple[float, float] = (0.5, 0.5)) -> None:
    """Rounds of a run folder, each evaluated, each with a checkpoint that nobody reads."""
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    if not (path / "config.yaml").exists():
        files.write(path / "config.yaml", yaml.safe_dump({**to_dict(config), "records": {}}))
    with (path / "metrics.jsonl").open("a") as file:
        for index in rounds:
            row = {"round": index, "seconds": 1.0, PROBE: scores[0] + index / 100, REAL: scores[1] + index / 100}
            file.write(json.dumps(row) + "\n")
            (path / "checkpoints" / f"round-{index:08d}.safetensors").write_bytes(b"")


def a_population(folder: Path, **fields: Any) -> tuple[Plan, list[tuple[Path, int]], int]:
    """A plan, the reports of its two trials, and how many rounds were trained.

    The donor trains 8 rounds. The taker trains 6, goes back to the donor's 4th with other weights, and trains 4.
    """
    found = a_plan(folder, scheduler="pbt", **fields)
    config = plan.bookkeeping(plan.configuration(found, SAMPLE), found)
    donor, taker = found.trials_folder / "donor", found.trials_folder / "taker"
    a_run(donor, config, range(1, 9))
    a_run(taker, config, range(1, 7), (0.3, 0.2))
    changed = plan.bookkeeping(plan.configuration(found, {**SAMPLE, "weights.adversarial": 3.0}), found)
    ran, branch = trial.lineage(found, changed, taker, Origin(str(donor), 4))
    assert branch.name.startswith("taker-") and [row["round"] for row in rows(branch)] == [1, 2, 3, 4]
    a_run(branch, ran, range(5, 9), (0.1, 0.4))
    reports = [(donor, index) for index in range(1, 9)] + [(taker, index) for index in range(1, 7)]
    return found, reports + [(branch, index) for index in range(5, 9)], 8 + 6 + 4


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def at_its_start(found: Plan, folder: Path) -> Path:
    """The folder of the same sweep before its first trial."""
    limits.begin(dataclasses.replace(found, folder=folder / "start"))
    return folder / "start"


def test_rounds_of_a_sweep_count_once_whatever_was_copied_or_trained_again(tmp_path: Path) -> None:
    found, reports, trained = a_population(tmp_path, total_rounds=18)
    shutil.copytree(reports[-1][0], found.trials_folder / f".{reports[-1][0].name}.77")  # a copy that was killed
    limits.begin(found)
    after_a_restart = limits.Counter(found.folder)
    assert after_a_restart.total == trained
    for path, index in reports[8:]:  # a killed trial goes on from an earlier checkpoint
        after_a_restart.add(path, index)
    assert after_a_restart.total == trained
    live = limits.Counter(at_its_start(found, tmp_path))
    for path, index in reports:
        assert live.over() is None
        live.add(path, index)
    assert live.total == trained
    assert live.over() == limits.reached(tmp_path / "start") == "18 of 18 rounds were played"
    assert after_a_restart.over() == limits.reached(found.folder) == "18 of 18 rounds were played"
    limits.begin(dataclasses.replace(found, total_rounds=19))
    assert limits.reached(found.folder) is None and limits.Counter(found.folder).over() is None


def test_a_limit_that_left_nothing_undone_did_not_end_the_sweep_early(tmp_path: Path) -> None:
    found = a_plan(tmp_path, trials=2)
    for name, outcome, expected in (("a", "finished", "words"), ("b", "pruned", None), ("c", "stopped", "words")):
        journal.settle(found, an_entry(name, outcome, 0.5), lambda line: None)
        journal.note_end(found, "words")
        assert journal.limit(found) == expected


def test_a_correlation_counts_what_a_branch_copied_for_the_trial_that_was_judged(tmp_path: Path) -> None:
    found, reports, _ = a_population(tmp_path, overrides={**OVER, "data": {"name": "digits"}})
    others = {f"t{index}": (0.1 * index, 0.2 * index) for index in range(3)}
    for name, scores in others.items():
        a_run(found.trials_folder / name, run_folder.read_config(reports[0][0])[0], range(1, 9), scores)
    entries = [an_entry("donor", "finished", 0.58), an_entry("taker", "finished", 0.18), *(
        an_entry(name, "finished", 0.5) for name in others)]  # fmt: skip
    points = report.correlation(found, found.base, entries)
    assert [row["trials"] for row in points] == [5] * 8
    early, late = ([*pair, *others.values()] for pair in (((0.5, 0.5), (0.3, 0.2)), ((0.5, 0.5), (0.1, 0.4))))
    for row, expected in zip(points, [early] * 4 + [late] * 4, strict=True):
        assert row["spearman"] == report.spearman(*zip(*expected, strict=True)), row


def test_a_schedule_that_is_not_searched_stays_as_it_is_when_a_trial_takes_over_a_state(tmp_path: Path) -> None:
    tv = [[0, 1.0], [6, 0.5]]
    _, reports, _ = a_population(tmp_path, overrides={**OVER, "weights": {"tv": tv}})
    ran, _ = run_folder.read_config(reports[-1][0])
    assert (ran.weights.tv, ran.weights.adversarial) == (tv, [[0, 2.0], [4, 3.0]])


def test_a_copy_that_was_killed_is_no_trial(tmp_path: Path) -> None:
    found, reports, _ = a_population(tmp_path)
    shutil.copytree(reports[-1][0], found.trials_folder / f".{reports[-1][0].name}.77")
    journal.settle_lost(found, lambda line: None)
    assert sorted(entry.id for entry in journal.entries(found)) == ["donor", "taker"]


def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"searcher": "hyperband"}, "--searcher 'hyperband': expected one of optuna, random, grid"
    yield {"scheduler": "ashe"}, "--scheduler 'ashe': expected one of asha, none, pbt"
    yield {"objective": "miou"}, "--objective 'miou': expected one of agreement, accuracy"
    yield {"overrides": {**OVER, "method": "kd"}}, "method=kd invents no images to make a probe of"
    yield (
        {"overrides": {**OVER, "max_minutes": 3}},
        "max_minutes=3 ends a run early: the budget of a sweep is --minutes",
    )
    yield {"overrides": {**OVER, "weights": {"one_hot": 1}}}, "weights.one_hot is both given and searched"
    yield {"trials": 0}, "--trials 0: expected a number above 0"
    yield {"cpus": 0.0}, "--cpus 0: expected a number above 0"
    yield {"gpus": -1.0}, "--gpus -1: expected a share of one GPU"
    yield {"gpus": 1.5}, "--gpus 1.5: expected a share of one GPU, such as 0.5, or a whole number"
    yield {"gpus": math.nan}, "--gpus nan: expected a share"
    two = {**OVER, "distributed": {"world_size": 2}}
    yield {"gpus": 0.5, "overrides": two}, "--gpus 0.5: each of 2 processes of a trial needs a GPU of its own"
    yield {"searcher": "grid", "trials": 5}, "--trials 5: the grid of this space has 81 points; leave --trials out"
    pbt = {"scheduler": "pbt", "searcher": "random"}
    yield (
        {**pbt, "space": spaces.find("turns")},
        "pbt changes values during a run, which only weights.* may: not student_",
    )
    yield {**pbt, "searcher": "optuna"}, "pbt searches by itself: --searcher random, not optuna"
    yield {**pbt, "trials": 1}, "--trials 1: a population has at least 2"
    yield {**pbt, "parallel": 1}, "--parallel: a population takes turns"


@pytest.mark.parametrize(("fields", "complaint"), list(refusals()))
def test_a_plan_that_does_not_fit_together_is_refused(tmp_path: Path, fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as refusal:
        plan.check(a_plan(tmp_path, **fields))
    assert complaint in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_an_oracle_needs_data_and_is_called_one(tmp_path: Path) -> None:
    without = {**OVER, "data": {"name": "none"}, "teach": {"automatic": False}}
    with pytest.raises(UserError, match=r"accuracy is measured on real data, and data\.name=none: use agreement"):
        plan.check(a_plan(tmp_path, objective="accuracy", overrides=without))
    with_data = a_plan(tmp_path, objective="accuracy")
    plan.check(with_data)
    assert "ORACLE" in with_data.words
    assert "data-free" in a_plan(tmp_path).words


def test_seeds_are_lists_and_ranges() -> None:
    assert plan.seeds("0-4") == [0, 1, 2, 3, 4]
    assert plan.seeds("0,7,2-3") == [0, 7, 2, 3]
    assert plan.seeds(None) == []
    for text in ("", "x", "4-0", "1,1", "-1"):
        with pytest.raises(UserError, match="expected seeds such as 0-4"):
            plan.seeds(text)


def test_a_folder_belongs_to_one_sweep(tmp_path: Path) -> None:
    mine = a_plan(tmp_path)
    with pytest.raises(UserError, match="--resume: there is no sweep in"):
        plan.record(mine, resume=True)
    plan.record(mine, resume=False)
    with pytest.raises(UserError, match="holds this sweep already: --resume continues it"):
        plan.record(mine, resume=False)
    plan.record(dataclasses.replace(mine, minutes=3.0, cpus=2.0), resume=True)
    with pytest.raises(UserError, match=r"belongs to another sweep \(trials is 4 there, 5 here\)"):
        plan.record(dataclasses.replace(mine, trials=5), resume=True)
    other = a_plan(tmp_path, overrides={**OVER, "student": {"network": "cnn4", "lr": 0.2}})
    with pytest.raises(UserError, match=r"student\.lr is 0\.1 there, 0\.2 here"):
        plan.record(other, resume=True)
    foreign = dataclasses.replace(mine, folder=tmp_path)
    with pytest.raises(UserError, match=r"holds something else \(sweep\): give another --output"):
        plan.record(foreign, resume=False)


def an_entry(name: str, outcome: str, objective: float | None, **fields: Any) -> Entry:
    given = {"folder": f"trials/{name}", "sample": SAMPLE, "error": None, "agreement": objective, "oracle": 0.5}
    return Entry(
        id=name, outcome=outcome, objective=objective, **{**given, "student_updates": 40, "round": 8, **fields}
    )


def test_the_best_was_played_to_the_end_where_any_was() -> None:
    pruned, done, failed = an_entry("a", "pruned", 0.9), an_entry("b", "finished", 0.8), an_entry("c", "failed", 0.0)
    assert report._best([pruned, done, failed]) == done
    assert report._best([pruned, failed]) == pruned
    assert report._best([failed, an_entry("d", "stopped", None)]) is None


def test_rank_correlation_by_hand() -> None:
    assert report.spearman([0.1, 0.2, 0.3], [1, 2, 9]) == pytest.approx(1.0)
    assert report.spearman([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert report.spearman([1, 1, 1], [1, 2, 3]) is None


def a_copy(prepared: Plan, whole: list[Standing], name: str, factor: float) -> None:
    """The run folder of a trial that scored otherwise all along."""
    path = prepared.trials_folder / name
    shutil.copytree(whole[-1].folder, path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    scored = [row | {PROBE: factor * row[PROBE]} if PROBE in row else row for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))


def test_the_report_is_written_from_the_folder(prepared: Plan, whole: list[Standing]) -> None:
    for index, name in enumerate(("t0", "t1", "t2", "t3")):
        a_copy(prepared, whole, name, 1 - index / 4)
    for path in prepared.trials_folder.iterdir():
        if path.name not in ("t0", "t1", "t2", "t3"):
            shutil.rmtree(path)
    for name in ("t0", "t1", "t2"):
        values = trial.final_values(prepared.trials_folder / name)
        found = an_entry(name, "finished", values[PROBE], oracle=values["evaluation/student_accuracy"])
        journal.settle(prepared, found, lambda line: None)
        ran = run_folder.read_config(prepared.trials_folder / name)[0]
        assert journal.configuration(prepared, found) == ran, "MLflow lets no parameter change"
    broken = an_entry("t9", "failed", 0.0, agreement=None, oracle=None, error="student/total is not finite")
    journal.settle(prepared, broken, lambda line: None)
    lost = trial.run(prepared, "lost", SAMPLE)
    standing = next(lost)
    lost.close()
    recorded = prepared.trials_folder / "t3" / "config.yaml"
    recorded.write_text(recorded.read_text().replace("  adversarial: 2.0\n", "  adversarial: [[0, 2.0], [4, 3.0]]\n"))
    journal.settle_lost(prepared, lambda line: None)
    *_, begun, ended = journal.entries(prepared)
    assert (begun.id, begun.outcome, begun.error) == ("lost", "stopped", journal.LOST)
    assert (begun.objective, begun.round) == (standing.objective, standing.round)
    assert (ended.id, ended.outcome, ended.error, ended.round) == ("t3", "finished", None, 8)
    assert ended.objective == pytest.approx(whole[-1].objective / 4)
    assert (ended.sample["weights.adversarial"], ended.sample["weights.one_hot"]) == (3.0, 0.1), (
        "of a schedule the last"
    )
    journal.note_end(prepared, None)
    content = report.write(prepared, prepared.base)
    assert content["outcomes"] == {"finished": 4, "failed": 1, "pruned": 0, "stopped": 1}
    assert (prepared.folder / "trials.csv").read_text().count(journal.LOST) == 1
    assert [row["trials"] for row in content["correlation"]] == [5] + [4] * 7
    assert [row["student_updates"] for row in content["correlation"]] == [5 * share for share in range(1, 9)]
    page = (prepared.folder / "report.md").read_text()
    assert "oracle: accuracy" in page and "probe agreement (objective)" in page
    assert "- `t9`: student/total is not finite" in page
    assert (prepared.folder / "trials.csv").read_text().count("\n") == 7
    assert (prepared.folder / "parallel.png").read_bytes()[:4] == b"\x89PNG"
    best = resolve.resolve(None, resolve.read_file(prepared.folder / "best.yaml"))
    chosen = run_folder.read_config(prepared.folder / content["best"]["folder"])[0]
    assert best.weights == chosen.weights
    assert (best.tracking, best.evaluate_every) == (prepared.base.tracking, prepared.base.evaluate_every)
    assert max(entry.objective or 0.0 for entry in journal.entries(prepared)) == content["best"]["objective"]
