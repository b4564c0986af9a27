"""benchmarks.step and benchmarks.gpu rehearsed on a CPU, so that a GPU's first minute is not spent on a mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_calls, step
from benchmarks.gpu import Budget
from benchmarks.gpu_suites import STEPS, SUITES, Suite
from benchmarks.methods import read
from harness.commands.profile import measure, timing
from harness.config import PRUNED, build, to_dict
from harness.config.parse import merge
from harness.errors import UserError
from harness.methods import METHODS
from harness.networks import roles
from tests.helpers import ROOT, environment

SMALL = {
    "batch_size": 16, "teacher": {"network": "cnn8"}, "student": {"network": "cnn4"}, "student_steps": 1,
    "generator": {"latent_size": 8, "width": 4}, "teach": {"epochs": 1, "batch_size": 256},
}  # fmt: skip


def test_the_round_and_the_plain_loop_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.PAIRS, "tiny", merge(step.PAIRS["digits"], {**SMALL, "student_steps": 2}))
    rows = step.measure("tiny", 8, ["eager", "bf16"], 3)
    assert [row["variant"] for row in rows] == ["plain", "frozen", "eager", "bf16"]
    assert rows[2]["apart"] < 1e-4 and 0 < rows[3]["apart"] < 0.1
    assert all(low <= middle <= high for low, middle, high in (row["of_plain"] for row in rows))
    assert step.table(rows).count("\n") == 5
    monkeypatch.setitem(step.TOLERANCE, "fp32", 0.0)
    with pytest.raises(AssertionError, match="apart by"):
        step.measure("tiny", 8, ["eager"], 3)


@pytest.mark.parametrize("pair", step.PAIRS)
def test_a_pairs_networks_fit(pair: str) -> None:
    config = build(step.PAIRS[pair])
    with torch.device("meta"):
        for make in (roles.teacher, roles.student, roles.generator):
            make(config)


@pytest.mark.parametrize("name", SUITES)
def test_every_job_of_a_suite_has_a_configuration(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DDAD_DATA", str(tmp_path))
    Path("examples").symlink_to(ROOT / "examples")  # with the network files that suites name
    suite = SUITES[name]
    if suite.weights:
        with pytest.raises(UserError, match="is not there"):
            gpu.config(name, suite, "ddad", 0, {})
        (tmp_path / "weights" / suite.weights).parent.mkdir(parents=True)
        (tmp_path / "weights" / suite.weights).touch()
    for method in suite.methods:
        config = gpu.config(name, suite, method, 1, {"precision": "bf16"})
        assert (config.method, config.seed, config.tracking.uri) == (method.partition(":")[0], 1, "none")
    untrained = build(merge(to_dict(config), {"teacher": {"checkpoint": "untrained"}}))
    with torch.device("meta"):
        roles.teacher(untrained), roles.generator(untrained)
        if untrained.student.network != PRUNED:  # by the importance of weights, of which there are none here
            roles.student(untrained)


@pytest.mark.parametrize("name", SUITES)
def test_a_rehearsal_shortens_a_warm_up_and_gives_none_to_a_method_without(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDAD_DATA", str(tmp_path))
    suite = SUITES[name]
    if suite.weights:
        (tmp_path / "weights" / suite.weights).parent.mkdir(parents=True)
        (tmp_path / "weights" / suite.weights).touch()
    for method in suite.methods:
        whole = gpu.config(name, suite, method, 0, gpu.REHEARSAL.over())
        short = gpu.REHEARSAL.shortened(whole)
        assert short.generator.warmup == (1 if whole.generator.warmup else 0)
        assert METHODS[short.method].turns(short)


def measure_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peaks from a small product and a small copy."""
    monkeypatch.setattr(timing, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(timing, "COPY_MIB", {"cpu": 1})


@pytest.mark.usefixtures("no_curves")
def test_slices_are_rehearsed_interrupted_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    measure_little(monkeypatch)
    monkeypatch.setattr(gpu, "WORKERS", 0)
    monkeypatch.setattr(gpu, "EVALUATIONS", 2)
    monkeypatch.setitem(step.PAIRS, "tiny", merge(step.PAIRS["digits"], SMALL))
    monkeypatch.setenv("OUT", str(tmp_path))
    budget = Budget(seconds=0.2, rate_rounds=1, step_rounds=1, variants=("eager",), precision="fp32")
    rows = tmp_path / "rows" / "gpu.jsonl"
    chosen = ("ddad", "dafl", "kd")
    suites = {"tiny": Suite("digits", SMALL, None, chosen), "absent": Suite("digits", {}, "no/such/file.th", chosen)}

    def slice_of(seconds: float) -> list[str]:
        queue = gpu.jobs(suites, {"tiny": 8}, budget, [0])
        return gpu.work_through(queue, time.monotonic() + seconds, "", rows)

    everything = ["step/tiny/eager", "tiny/teach", "tiny/ddad/0", "tiny/dafl/0", "tiny/kd/0"]
    assert slice_of(0)[:5] == everything, "nothing is begun that does not fit"
    with monkeypatch.context() as interrupted:
        interrupted.setattr(gpu, "_until", lambda deadline: lambda: "the slice is over")
        assert "tiny/teach" in slice_of(300)
    assert slice_of(300) == []
    found = read(rows)
    assert {row["job"] for row in found} == set(everything)
    assert (tmp_path / "gpu.jsonl").read_text() == rows.read_text()
    num_rows = len(found)
    assert slice_of(300) == [] and len(read(rows)) == num_rows, "what is done is not done again"
    kept = [line for line in rows.read_text().splitlines() if '"tiny/dafl/0"' not in line]
    shutil.rmtree(tmp_path / "work")
    rows.write_text("\n".join(kept) + "\n")
    assert slice_of(300) == [] and len(read(rows)) == num_rows, "a fresh machine teaches the teacher anew"
    rows.write_text("\n".join([*kept, '{"job": "tiny/dafl/0", "failed": "so"}']) + "\n")
    assert slice_of(300) == [] and "tiny/dafl/0 failed: so" in gpu.report(rows), "what failed is not begun again"
    told = gpu.report(rows)
    assert "absent/ddad/0: left out" in capsys.readouterr().out
    assert "| tiny | 8 | eager |" in told and "of a large matrix product" in told and "| dafl |" not in told


def test_it_imports_no_more_than_a_gpu_machine_has() -> None:
    absent = {"omegaconf", "mlflow", "ray", "matplotlib", "rich", "segmentation_models_pytorch"}
    program = f"import sys, benchmarks.gpu; print(sorted({absent} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_job_that_fails_is_noted_and_the_next_is_begun(tmp_path: Path) -> None:
    def broken(deadline: float) -> list[dict[str, Any]]:
        raise RuntimeError("no compiler\nhere")

    rows, done = tmp_path / "gpu.jsonl", [{"seconds": 1.0}]
    queue = [gpu.Job("a", 0.0, broken), gpu.Job("b", 0.0, lambda deadline: done)]
    assert gpu.work_through(iter(queue), time.monotonic() + 60, "", rows) == []
    assert [(row["job"], row.get("failed")) for row in read(rows)] == [
        ("a", "RuntimeError: no compiler here"),
        ("b", None),
    ]


def test_the_share_of_the_peak_is_of_counted_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_little(monkeypatch)
    monkeypatch.setitem(step.PAIRS, "tiny", merge(step.PAIRS["digits"], SMALL))
    found = gpu._share("tiny", 8, "eager", 0.5)
    counted = measure.measure(measure.machine(build(merge(step.PAIRS["tiny"], {"batch_size": 8})), print)).flop
    assert found["flop"] == counted > 0
    assert found["share"] == pytest.approx(counted / 0.5 / found["peak"])


def test_tf32_is_switched_for_its_own_loop_alone() -> None:
    before = step.products()
    step.multiply(step.TF32)
    assert step.products() == [True, True]
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    step.multiply(before)
    assert step.products() == before == [False, True], "torch's own choice: convolutions alone"


@pytest.mark.parametrize("call", gpu_calls.CALLS)
def test_the_jobs_of_a_call_exist_and_fit_into_its_time(call: str) -> None:
    parts = gpu_calls.CALLS[call]
    for part in parts:
        by_name = {job.name: job for job in gpu.jobs(SUITES, STEPS, Budget(seconds=part.seconds), [0])}
        for name in part.jobs:
            assert by_name[name].least < 60 * part.minutes
    assert sum(60 * part.minutes + gpu_calls.GRACE for part in parts) <= 60 * 9.5


def test_a_part_runs_its_jobs_at_once_and_joins_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs whose files are missing leave no row, and do not end the call."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DDAD_DATA", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu, "ROWS", tmp_path / "results" / "rows.jsonl")
    part = gpu_calls.Part(("step/digits/eager", "cifar10-half/dfad/0"), 5.0)
    gpu_calls.play(part, time.monotonic() + 300, rehearse=True)
    assert {row["job"] for row in read(gpu.ROWS)} == {"step/digits/eager"}
    assert "step/digits/eager" in (tmp_path / "rows.jsonl").read_text()
