"""The data-free objectives by values computed by hand, what a probe is made of, and the benchmark that judges them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import correlation
from benchmarks import objectives as benchmark
from harness.errors import UserError
from harness.files import sha256
from tests.helpers import without_curves
from tests.sweeps import OVERRIDES, SAMPLE, make_plan
from tune import analysis, checks, configs, generated, objectives, plan, probe, records, report, trial
from tune.plan import Plan


def logits(*rows: list[float]) -> Tensor:
    """Probabilities as logits."""
    return torch.tensor(rows).log()


TEACHER = logits([0.5, 0.5 - 1e-6, 1e-6], [0.75, 0.125, 0.125], [0.125, 0.75, 0.125])
STUDENT = logits([0.25, 0.25, 0.5], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25])
CLASSES = torch.tensor([0, 0, 1], dtype=torch.int16)

KL_OF_0 = [math.log(2), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)]
"""KL(teacher || student) of the two images of class 0."""


def test_the_objectives_are_means_over_the_teachers_classes() -> None:
    """Class 0: one of two is equal, the wrong one at half of the confidence; class 1: its only one is equal."""
    found = objectives.evaluate([(STUDENT, CLASSES, TEACHER)])
    assert found["agreement"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["confidence"] == pytest.approx((0.75 / (0.75 + 0.5) + 1) / 2)
    assert found["kl"] == pytest.approx(math.exp(-(sum(KL_OF_0) / 2 + KL_OF_0[1]) / 2), abs=1e-5)
    parts = [(STUDENT[:2], CLASSES[:2], TEACHER[:2]), (STUDENT[2:], CLASSES[2:], TEACHER[2:])]
    assert objectives.evaluate(parts) == pytest.approx(found), "batches do not matter"


def test_the_objectives_of_maps_are_over_pixels() -> None:
    """The same three positions as the pixels of one image."""
    whole = objectives.evaluate([(STUDENT, CLASSES, TEACHER)])
    maps = [one.T.reshape(1, 3, 1, 3) for one in (STUDENT, TEACHER)]
    assert objectives.evaluate([(maps[0], CLASSES.reshape(1, 1, 3), maps[1])]) == pytest.approx(whole)


def test_a_perfect_student_has_1_and_one_that_is_not_finite_0_by_divergence() -> None:
    assert objectives.evaluate([(TEACHER, CLASSES, TEACHER)]) == pytest.approx(dict.fromkeys(objectives.OBJECTIVES, 1))
    broken = STUDENT.clone()
    broken[1, 0] = math.nan
    assert objectives.evaluate([(broken, CLASSES, TEACHER)])["kl"] == 0.0
    rounded = (8 * TEACHER).log_softmax(1).half()
    assert objectives.evaluate([(8 * TEACHER, CLASSES, rounded)])["kl"] == pytest.approx(1, abs=1e-3)


def test_a_probe_of_an_older_version_gives_the_agreement_only() -> None:
    assert objectives.evaluate([(STUDENT, CLASSES, None)]) == {"agreement": 0.75}


def test_mixtures_are_between_two_images_and_views_are_shifted(tmp_path: Path) -> None:
    config = make_plan(tmp_path).base
    images = torch.stack([torch.full((1, 8, 8), float(2**index)) for index in range(8)])
    mixed = generated.mixtures_of(config, images)[:, 0, 0, 0]
    assert torch.equal(mixed, generated.mixtures_of(config, images)[:, 0, 0, 0])
    assert (
        all(1 <= value <= 128 for value in mixed.tolist())
        and len(set(mixed.tolist()) - {2.0**k for k in range(8)}) >= 6
    )
    marked = torch.zeros(8, 1, 8, 8)
    marked[:, 0, 4, 4] = 1.0
    rows = [int(view.amax(1).argmax()) for view in generated.views_of(config, marked)[:, 0]]
    assert set(rows) <= {3, 4, 5} and len(set(rows)) > 1, "by up to an eighth of the side"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of several methods' probe of mixtures, by KL, whose default runs have finished."""
    overrides = {**OVERRIDES, "rounds": 2}
    made = make_plan(
        tmp_path_factory.mktemp("methods"), objective="kl", probe_images="methods+mixtures", overrides=overrides
    )
    checks.check(made)
    with without_curves():
        for index in range(4):
            assert not made.probe_file.exists()
            trial.default_run(made, index)
    return made


def test_a_probe_of_several_methods_has_images_of_each(prepared: Plan) -> None:
    summary = json.loads(prepared.probe_file.with_name("probe.json").read_text())
    assert (summary["made_of"], summary["methods"]) == ("methods+mixtures", ["ddad", "dfad", "dafl", "dfq"])
    assert sorted(path.name for path in (prepared.folder / "sources").iterdir()) == ["dafl", "dfad", "dfq"]
    found = probe.load(prepared.probe_file)
    assert found.log_probabilities is not None and found.log_probabilities.shape == (len(found.images), 10)
    assert torch.equal(found.log_probabilities.float().exp().sum(1).round(decimals=2), torch.ones(len(found.images)))
    assert probe.agreement(found, teacher(prepared), 7) == pytest.approx(1, abs=0.01)
    assert sorted(path.name for path in prepared.probe_file.parent.iterdir()) == ["probe.json", "probe.safetensors"]
    other = make_plan(prepared.folder, overrides=prepared.overrides, probe=prepared.folder)
    assert len(configs.sources(other)) == 1, "a probe that is another sweep's needs no other runs"


def teacher(prepared: Plan) -> nn.Module:
    from harness.networks import roles

    return roles.teacher(prepared.base)


def test_the_objective_of_a_trial_is_named_in_its_records(prepared: Plan) -> None:
    with without_curves():
        *_, last = trial.run(prepared, "t0", SAMPLE)
    student = trial.student(configs.of_trial(prepared, SAMPLE), Path(last.folder))
    scores = probe.scores(probe.load(prepared.probe_file), student, 16)
    assert (last.objective, last.agreement) == pytest.approx((scores["kl"], scores["agreement"]))
    assert last.objective != last.agreement
    record = records.from_result(prepared, "t0", SAMPLE, vars(last), None)
    records.add(prepared, record, lambda line: None)
    content = report.write(prepared, prepared.base)
    words = "exp(-KL(teacher || student)) on the probe of methods+mixtures (data-free)"
    assert (content["objective"], content["probe_images"]) == (words, "methods+mixtures")
    page = (prepared.folder / "report.md").read_text()
    assert words in page and "| probe kl (objective) | probe agreement | oracle: accuracy |" in page
    default = analysis.default_scores(prepared, prepared.base)
    assert default["objective"] != default["agreement"]
    assert f"| {100 * last.objective:.2f} | {100 * (last.agreement or 0):.2f} |" in page


def sweep_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Plan:
    """The plan of a command in `folder`."""
    monkeypatch.chdir(folder)
    known: dict[str, Any] = {"scheduler": "asha", "space": "loss_weights", "trials": 4, "searcher": None}
    known |= {"objective": None, "probe_images": None, "output": None}
    return plan.make(("digits", None, OVERRIDES), **{**known, **options})


@pytest.mark.parametrize("output", [None, Path("mine")])
def test_a_resumed_sweep_keeps_its_objective_whatever_the_default_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Path | None
) -> None:
    old = sweep_in(tmp_path, monkeypatch, output=output)
    assert (old.objective, old.probe_images) == ("agreement", "generator")
    plan.record(old, resume=False)
    content = json.loads((old.folder / "sweep.json").read_text())
    assert "probe_images" not in content, "as sweeps were recorded before there was a choice"
    monkeypatch.setattr(Plan, "__init__", with_defaults(objective="kl", probe_images="generator+mixtures"))
    new = sweep_in(tmp_path, monkeypatch, output=output)
    assert (new.objective, new.probe_images) == ("kl", "generator+mixtures")
    assert (new.folder == old.folder) == (output is not None)
    resumed = sweep_in(tmp_path, monkeypatch, output=output, resume=True)
    assert resumed == old
    plan.record(resumed, resume=True)
    given = sweep_in(tmp_path, monkeypatch, output=output, resume=True, objective="confidence")
    assert given.objective == "confidence"
    if output:
        with pytest.raises(UserError, match="belongs to another sweep"):
            plan.record(given, resume=True)


def with_defaults(**defaults: str) -> Any:
    """Plan.__init__ with other defaults."""
    original = Plan.__init__
    return lambda self, *values, **fields: original(self, *values, **{**defaults, **fields})


def test_an_older_probe_is_enough_for_agreement_only(prepared: Plan, tmp_path: Path) -> None:
    older = probe.file_in(tmp_path / "older")
    older.parent.mkdir(parents=True)
    content = load_file(prepared.probe_file)
    save_file({name: content[name] for name in ("images", "answers")}, older)
    (older.parent / "probe.json").write_text(json.dumps({"sha256": sha256(older)}))
    checks.check(make_plan(tmp_path, probe=tmp_path / "older", objective="agreement"))
    with pytest.raises(UserError) as error:
        checks.check(make_plan(tmp_path, probe=tmp_path / "older", objective="kl"))
    assert "without the teacher's probabilities that --objective kl needs: give --objective agreement" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_another_sweeps_probe_says_what_it_is_made_of(
    prepared: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sweep_in(tmp_path, monkeypatch, probe=prepared.folder, objective="confidence")
    text = "agreement weighted by the teacher's confidence on the probe of methods+mixtures (data-free)"
    assert made.objective_text == text
    with pytest.raises(UserError, match="--probe-images is about a new probe"):
        sweep_in(tmp_path, monkeypatch, probe=prepared.folder, probe_images="generator")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "agrement"}, "--objective 'agrement': expected one of agreement, kl, confidence, accuracy; did"),
        ({"objective": "KL"}, "--objective 'KL': expected one of agreement, kl, confidence, accuracy; known: accuracy"),
        ({"probe_images": "generator+view"}, "; did you mean 'generator+views'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        checks.check(make_plan(tmp_path, **fields))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_correlations_are_spearmans_and_of_the_same_resamples() -> None:
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = 0.8."""
    scores, values = np.array([1.0, 2.0, 3.0, 4.0]), np.array([[1, -1], [2, -2], [4, -4], [3, -3]], dtype=float)
    assert correlation.correlations(scores, values) == pytest.approx([0.8, -0.8])
    draws = correlation.resampled(scores, values, 50)
    assert draws.shape == (50, 2) and np.allclose(draws[:, 0], -draws[:, 1], equal_nan=True)
    assert correlation.interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))


def rows(scores: list[float], seconds: float = 15.0) -> list[dict[str, Any]]:
    """Runs whose kl on generator orders them as the scores, and whose agreement orders them the other way round."""
    return [
        {"kind": "run", "number": index, "seconds": seconds, "score": score, "teacher": 0.9,
         "objectives": {"generator": {"agreement": -score, "kl": score}}}
        for index, score in enumerate(scores)
    ]  # fmt: skip


def test_the_table_has_the_best_objective_first() -> None:
    diverged = {**rows([0.0])[0], "score": None, "objectives": {}}
    found = {"digits": [*rows([0.1 * k for k in range(9)]), diverged], "camvid": rows([0.05 * k for k in range(8)])}
    lines = correlation.page(found).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("| kl |"))
    assert lines[first].startswith(
        "| kl | generator | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 1.00 | +2.00 [+2.00, +2.00]"
    )
    assert lines[first + 1].startswith("| agreement (default) | generator | -1.00 [-1.00, -1.00] |")
    assert "| digits | 15 | 9 | 1 | 90.0 | 0.0 | 40.0 | 80.0 |" in lines


def test_the_benchmarks_samples_are_seeded_and_fit_their_methods() -> None:
    for suite, pair in benchmark.PAIRS.items():
        benchmark.methods.SUITES[suite] = pair.suite
        for number, name in enumerate(pair.names):
            method, values = benchmark.sample(suite, number)
            assert method == name and benchmark.sample(suite, number) == (method, values)
            config = benchmark.configuration(suite, method, values, 3)
            assert (config.method, config.rounds, config.student.lr) == (
                name.partition(":")[0],
                3,
                values["student.lr"],
            )
        assert benchmark.sample(suite, 0) != benchmark.sample(suite, len(pair.names)), "other settings of one method"


@pytest.mark.usefixtures("no_curves")
def test_the_benchmark_measures_each_configuration_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of a few rounds: rows with every objective on every kind of probe, which a second call leaves alone."""
    tiny = ("teacher.network=cnn8", "teacher.checkpoint=untrained", "student.network=cnn4", "batch_size=16",
            "generator.width=8", "generator.latent_size=8")  # fmt: skip
    suite = benchmark.Suite("digits", (0,), 0, tiny)
    monkeypatch.setitem(benchmark.PAIRS, "tiny", benchmark.Pair(suite, 1.0, ("ddad", "dfad")))
    monkeypatch.setitem(benchmark.methods.SUITES, "tiny", suite)
    monkeypatch.setattr(benchmark.methods, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(benchmark.methods, "teach", lambda suite, words: None)  # random weights are no file
    monkeypatch.chdir(tmp_path)
    for method in ("ddad", "dfad"):
        row = {"kind": "rate", "method": method, "speeds": [0.5]}
        benchmark.methods.add(tmp_path / "results" / "objectives-tiny.jsonl", row)
    benchmark.measure("tiny", 2, 1.0)
    runs = [row for row in benchmark.rows("tiny") if row["kind"] == "run"]
    assert [(row["method"], row["rounds"]) for row in runs] == [("ddad", 2), ("dfad", 2)]
    for row in runs:
        assert tuple(row["objectives"]) == probe.KINDS
        assert all(values.keys() == objectives.OBJECTIVES.keys() for values in row["objectives"].values())
        assert 0 <= row["score"] <= 1 and len(set(row["probes"].values())) == len(probe.KINDS)
    before = (tmp_path / "results" / "objectives-tiny.jsonl").read_bytes()
    benchmark.measure("tiny", 2, 1.0)
    assert (tmp_path / "results" / "objectives-tiny.jsonl").read_bytes() == before
