"""The probe, a trial from start to end, a population that continues from a checkpoint, and the report; without Ray."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness import resolve
from harness.config import flat
from harness.errors import UserError
from harness.run import folder as run_folder
from harness.training import distill
from tests.helpers import without_curves
from tests.sweeps import OVERRIDES, SAMPLE, make_plan, make_record
from tune import checks, configs, generated, plan, probe, records, report, run_folders, trial
from tune.plan import PROBE_METRIC, Plan
from tune.population import Origin
from tune.trial import TrialResult


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan whose default run has finished and whose probe exists."""
    prepared = make_plan(tmp_path_factory.mktemp("prepared"))
    with without_curves():
        trial.default_run(prepared)
    return prepared


@pytest.fixture(scope="module")
def whole(prepared: Plan) -> list[TrialResult]:
    """The results of a trial that was not interrupted."""
    with without_curves():
        return list(trial.run(prepared, "whole", SAMPLE))


def weights(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "student.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_probe_is_made_from_four_checkpoints_of_the_default_run_and_kept(prepared: Plan) -> None:
    summary = json.loads((prepared.probe_file.parent / "probe.json").read_text())
    found = probe.load(prepared.probe_file)
    assert summary["rounds"] == [1, 2, 4, 8]
    assert summary["sha256"] == found.sha256
    assert found.images.shape == (summary["images"], 1, 8, 8)
    assert torch.bincount(found.predictions.long(), minlength=10).tolist() == summary["images_by_class"]
    assert max(summary["images_by_class"]) <= 4 * (probe.NUM_IMAGES // 4 // 10)
    before = prepared.probe_file.stat().st_mtime_ns
    trial.default_run(prepared)
    assert prepared.probe_file.stat().st_mtime_ns == before
    assert sorted(path.name for path in prepared.probe_file.parent.iterdir()) == ["probe.json", "probe.safetensors"]


def test_the_probe_contains_images_of_the_default_runs_generator(prepared: Plan) -> None:
    config = prepared.base
    last = generated.last_checkpoint(prepared.default_folder)
    assert last is not None and last.name == "round-00000008.safetensors"
    candidates = next(generated.images(config, last, "probe", 8))
    found = probe.load(prepared.probe_file)
    kept = [bool((found.images == image).all((1, 2, 3)).any()) for image in candidates]
    assert all(kept), "the first batch does not exceed the equal number of any class"


def test_the_parts_of_the_probe_are_made_at_checkpoints() -> None:
    for rounds in (1, 7, 16, 240, 241, 40_000):
        found = probe.stages(rounds)
        assert max(found) == rounds
        assert all(stage % probe.interval(rounds) == 0 for stage in found if stage < rounds)
    assert probe.stages(240) == {24: 0.1, 60: 0.25, 120: 0.5, 240: 1.0}


@pytest.mark.usefixtures("no_curves")
def test_a_sweep_can_use_the_probe_of_another_sweep(prepared: Plan, tmp_path: Path) -> None:
    overrides = {**OVERRIDES, "method": "dfad"}
    second = make_plan(tmp_path, overrides=overrides, probe=prepared.folder)
    assert checks.check(second).method == "dfad"
    assert plan.identity(second) != plan.identity(make_plan(tmp_path, overrides=overrides))
    probe.copy(prepared.folder, second.probe_file)
    trial.default_run(second)
    assert probe.load(second.probe_file).sha256 == probe.load(prepared.probe_file).sha256
    names = sorted(path.name for path in second.probe_file.parent.iterdir())
    assert names == ["probe.json", "probe.safetensors"]
    (last,) = [result for result in trial.run(second, "own", {}) if result.outcome]
    student = trial.student(second.base, Path(last.folder))
    assert last.agreement == probe.agreement(probe.load(prepared.probe_file), student, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"input": {"size": 12}}, r"its images are \(1, 8, 8\), this recipe's are \(1, 12, 12\)"),
        ({"teacher": {"network": "cnn12", "checkpoint": "untrained"}}, "its predictions are another teacher's"),
    ],
)
def test_a_probe_with_other_images_or_of_another_teacher_is_refused(
    overrides: dict[str, Any], message: str, prepared: Plan, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        checks.check(make_plan(tmp_path, overrides={**OVERRIDES, **overrides}, probe=prepared.folder))
    with pytest.raises(UserError, match="the probe cannot be read"):
        checks.check(make_plan(tmp_path, probe=tmp_path))


def test_a_changed_probe_is_refused(prepared: Plan, tmp_path: Path) -> None:
    for name in ("probe.json", "probe.safetensors"):
        (tmp_path / name).write_bytes(prepared.probe_file.with_name(name).read_bytes())
    content = load_file(tmp_path / "probe.safetensors")
    save_file({**content, "images": content["images"] + 1}, tmp_path / "probe.safetensors")
    with pytest.raises(UserError, match="has changed since the sweep began"):
        probe.load(tmp_path / "probe.safetensors")


def test_the_probe_is_complete_or_absent(prepared: Plan, tmp_path: Path) -> None:
    """After an interruption between its two files the probe can be made again."""
    found = probe.load(prepared.probe_file)
    for round_index, images in zip(probe.stages(8), found.images.chunk(4), strict=True):
        part = {"images": images.clone(), "answers": found.predictions[: len(images)].clone()}  # as of older versions
        save_file(part, tmp_path / f"part-{round_index:08d}.safetensors")
    sources = [probe.Source(prepared.base, tmp_path / "absent")]
    (tmp_path / "probe.json").mkdir()  # it cannot be written
    with pytest.raises(UserError, match=r"cannot write .*probe\.json"):
        probe.collect(sources, tmp_path)
    assert not (tmp_path / "probe.safetensors").exists()
    (tmp_path / "probe.json").rmdir()
    probe.collect(sources, tmp_path)
    assert torch.equal(probe.load(tmp_path / "probe.safetensors").images, found.images)


class FirstPixel(nn.Module):
    """Predicts the class that is the value of the first pixel: logits [B, 3]; or of each pixel: [B, 3, H, W]."""

    def __init__(self, is_map: bool) -> None:
        super().__init__()
        self.scale, self.is_map = nn.Parameter(torch.ones(())), is_map

    def forward(self, x: Tensor) -> Tensor:
        classes = x[:, 0].long() if self.is_map else x[:, 0, 0, 0].long()
        logits = nn.functional.one_hot(classes, 3).float() * self.scale
        return logits.movedim(-1, 1)


def test_agreement_is_the_mean_over_the_teachers_classes() -> None:
    students = torch.tensor([0, 0, 0, 1, 1])
    predictions = torch.tensor([0, 0, 0, 0, 1], dtype=torch.int16)  # agreement 3 of 4 and 1 of 1
    images = students[:, None, None, None].expand(5, 1, 2, 2).float()
    for size in (2, 5):
        found = probe.agreement(probe.Probe(images, predictions, ""), FirstPixel(False), size)
        assert found == pytest.approx((3 / 4 + 1) / 2)
    maps = torch.tensor([[[0, 0], [1, 2]]], dtype=torch.int16)  # of class 0: both; of 1: none; of 2: none
    images = torch.zeros(1, 1, 2, 2)
    assert probe.agreement(probe.Probe(images, maps, ""), FirstPixel(True), 1) == pytest.approx(1 / 3)


def test_a_trial_yields_eight_results_and_its_folder_has_their_student(
    prepared: Plan, whole: list[TrialResult]
) -> None:
    assert [one.round for one in whole] == list(range(1, 9))
    assert [one.student_updates for one in whole] == [5 * one.round for one in whole]
    assert [one.outcome for one in whole] == [None] * 7 + ["finished"]
    assert all(one.objective == one.agreement and one.oracle is not None for one in whole)
    config, _ = run_folder.read_config(Path(whole[-1].folder))
    assert flat(config)["weights.adversarial"] == 2.0
    assert (config.tracking.model, config.pictures) == (False, False)
    student = trial.student(config, Path(whole[-1].folder))
    assert probe.agreement(probe.load(prepared.probe_file), student, 16) == whole[-1].agreement


@pytest.mark.usefixtures("no_curves")
def test_the_student_of_a_run_folder_has_the_averaged_weights_if_the_run_averages(prepared: Plan) -> None:
    *_, last = trial.run(prepared, "averaged", {**SAMPLE, "student.average": 0.5})
    path = Path(last.folder)
    student = trial.student(run_folder.read_config(path)[0], path)
    assert equal({name: value.cpu() for name, value in student.state_dict().items()}, weights(path))
    assert probe.agreement(probe.load(prepared.probe_file), student, 16) == last.agreement


@pytest.mark.usefixtures("no_curves")
def test_an_interrupted_trial_continues_to_the_same_result(prepared: Plan, whole: list[TrialResult]) -> None:
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


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        ({"student.lr": 1e30}, "is not finite"),
        ({"generator.network": "dcgan"}, "16"),
    ],
)
def test_a_failed_trial_has_the_lowest_objective_and_the_error(
    prepared: Plan, sample: dict[str, Any], error: str
) -> None:
    *_, last = trial.run(prepared, f"bad-{next(iter(sample))}", sample)
    assert (last.outcome, last.objective) == ("failed", 0.0)
    assert error in (last.error or "")


@pytest.mark.usefixtures("no_curves")
def test_a_trial_of_a_population_continues_from_another_trial_and_records_its_schedule(
    prepared: Plan, whole: list[TrialResult]
) -> None:
    population = dataclasses.replace(prepared, scheduler="pbt", folder=prepared.folder)
    donor = trial.run(population, "donor", SAMPLE)
    for _ in range(4):
        result = next(donor)
    donor.close()
    changed = {**SAMPLE, "weights.adversarial": 3.0}
    branch = list(trial.run(population, "taker", changed, Origin(result.folder, result.round)))
    config, _ = run_folder.read_config(Path(branch[-1].folder))
    assert config.weights.adversarial == [[0, 2.0], [4, 3.0]]
    assert config.weights.one_hot == 0.1
    assert [one.round for one in branch] == [5, 6, 7, 8]
    assert Path(branch[-1].folder).name.startswith("taker-")
    overrides = {**OVERRIDES, "weights": {"adversarial": [[0, 2.0], [4, 3.0]], "one_hot": 0.1}}
    distill.distill(resolve.resolve("digits", None, overrides), prepared.folder / "again")
    assert equal(weights(branch[-1].folder), weights(prepared.folder / "again"))
    assert not equal(weights(branch[-1].folder), weights(whole[-1].folder))
    again = list(trial.run(population, "taker", changed, Origin(branch[1].folder, branch[1].round)))
    assert again[-1] == branch[-1], "a trial that continues its own run with the same weights makes no new branch"


@pytest.fixture
def sweep(prepared: Plan, tmp_path: Path) -> Plan:
    """The same sweep without trials, in a folder of its own."""
    shutil.copytree(prepared.folder, tmp_path / "sweep", ignore=shutil.ignore_patterns("trials"))
    return dataclasses.replace(prepared, folder=tmp_path / "sweep")


def copy_trial(sweep: Plan, whole: list[TrialResult], name: str, factor: float) -> None:
    """Copies the run folder of a trial, with all agreements multiplied by `factor`."""
    path = sweep.trials_folder / name
    shutil.copytree(whole[-1].folder, path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    scored = [row | {PROBE_METRIC: factor * row[PROBE_METRIC]} if PROBE_METRIC in row else row for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))


def test_the_report_is_written_from_the_sweeps_folder(sweep: Plan, whole: list[TrialResult]) -> None:
    for index, name in enumerate(("t0", "t1", "t2", "t3")):
        copy_trial(sweep, whole, name, 1 - index / 4)
    for name in ("t0", "t1", "t2"):
        values = run_folders.final_values(sweep.trials_folder / name)
        found = make_record(name, "finished", values[PROBE_METRIC], oracle=values["evaluation/student_accuracy"])
        records.add(sweep, found, lambda line: None)
        config, _ = run_folder.read_config(sweep.trials_folder / name)
        assert configs.recorded(sweep, sweep.folder / found.folder) == config, (
            "MLflow refuses other values of a parameter"
        )
    broken = make_record("t9", "failed", 0.0, agreement=None, oracle=None, error="student/total is not finite")
    records.add(sweep, broken, lambda line: None)
    lost = trial.run(sweep, "lost", SAMPLE)
    result = next(lost)
    lost.close()
    recorded = sweep.trials_folder / "t3" / "config.yaml"
    recorded.write_text(recorded.read_text().replace("  adversarial: 2.0\n", "  adversarial: [[0, 2.0], [4, 3.0]]\n"))
    records.add_lost_trials(sweep, lambda line: None)
    *_, begun, finished = records.trials(sweep)
    assert (begun.id, begun.outcome, begun.error) == ("lost", "stopped", records.LOST)
    assert (begun.objective, begun.round) == (result.objective, result.round)
    assert (finished.id, finished.outcome, finished.error, finished.round) == ("t3", "finished", None, 8)
    assert finished.objective == pytest.approx(whole[-1].objective / 4)
    assert (finished.sample["weights.adversarial"], finished.sample["weights.one_hot"]) == (3.0, 0.1), (
        "the last value of a schedule"
    )
    records.record_end(sweep, None)
    content = report.write(sweep, sweep.base)
    assert content["outcomes"] == {"finished": 4, "failed": 1, "pruned": 0, "stopped": 1}
    assert (sweep.folder / "trials.csv").read_text().count(records.LOST) == 1
    assert [row["trials"] for row in content["correlation"]] == [5] + [4] * 7
    assert [row["student_updates"] for row in content["correlation"]] == [5 * share for share in range(1, 9)]
    page = (sweep.folder / "report.md").read_text()
    assert "oracle: accuracy" in page and "probe agreement (objective)" in page
    assert "- `t9`: student/total is not finite" in page
    assert (sweep.folder / "trials.csv").read_text().count("\n") == 7
    assert (sweep.folder / "parallel.png").read_bytes()[:4] == b"\x89PNG"
    best = resolve.resolve(None, resolve.read_file(sweep.folder / "best.yaml"))
    chosen = run_folder.read_config(sweep.folder / content["best"]["folder"])[0]
    assert best.weights == chosen.weights
    assert (best.tracking, best.evaluate_every) == (sweep.base.tracking, sweep.base.evaluate_every)
    assert max(record.objective or 0.0 for record in records.trials(sweep)) == content["best"]["objective"]
