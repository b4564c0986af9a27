"""`ddad launch` and the files of launch/ start what they say, and the run is the one that a single process does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig

from harness.distributed import launcher
from harness.errors import UserError
from tests.distributed.starting import HELD, ROUNDS, TINY, distance, result, run, saved, started, until, workers
from tests.helpers import DDAD, ROOT

LAUNCH = ROOT / "launch"

ACCELERATE = sorted((LAUNCH / "accelerate").glob("*.yaml"))

SCRIPTS = [LAUNCH / "torchrun.sh", LAUNCH / "slurm/distill.sbatch"]

FILES = [*ACCELERATE, *SCRIPTS, LAUNCH / "kubernetes/job.yaml", LAUNCH / "ray/distill.py"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process."""
    folder = tmp_path_factory.mktemp("single") / "run"
    done = run([*DDAD, "distill", *TINY, "--output", folder], folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run on two processes, and what was said."""
    folder = tmp_path_factory.mktemp("two") / "run"
    done = run([*DDAD, "launch", "--nproc", "2", *TINY, "--output", folder], folder.parent)
    assert done.returncode == 0 and done.stderr == "", done
    return folder, done.stdout


def student(folder: Path) -> bytes:
    return (folder / "student.safetensors").read_bytes()


@pytest.mark.distributed
@pytest.mark.slow
def test_launch_equals_single_process(single: Path, two: tuple[Path, str]) -> None:
    folder, said = two
    assert said.count("student cnn4") == 1, "one process speaks"
    assert result(folder)["world_size"] == 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["distributed"]["world_size"] == 2
    assert 0 < distance(folder, single) < 1e-8
    scored = run([*DDAD, "evaluate", folder], folder.parent)
    assert scored.returncode == 0, "what ran on two processes is scored on one"


@pytest.mark.distributed
@pytest.mark.slow
def test_another_world_size_than_asked_for_is_refused_in_one_line(tmp_path: Path) -> None:
    words = [*DDAD, "launch", "--nproc", "2", *TINY, "distributed.world_size=3", "--output", "three"]
    done = run(words, tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("ddad: distributed.world_size=3") and "finds 2" in line
    assert done.stdout == "" and not (tmp_path / "three").exists()


@pytest.mark.distributed
@pytest.mark.slow
def test_sigterm_stops_all_at_one_round_and_the_same_command_resumes(two: tuple[Path, str], tmp_path: Path) -> None:
    words, folder = [*DDAD, "launch", "--nproc", "2", *HELD, "--output", "run"], tmp_path / "run"
    (tmp_path / "hold").touch()
    with started(words, tmp_path) as process:
        until(process, lambda: bool(saved(folder)))
        process.send_signal(signal.SIGTERM)
        (tmp_path / "hold").unlink()
        out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, (out, err)
    found = re.search(rf"stopped after round (\d+) of {ROUNDS} \(SIGTERM\)", out)
    assert found and err == "", (out, err)
    assert saved(folder)[-1] == int(found[1]) < ROUNDS
    again = run(words, tmp_path)
    assert again.returncode == 0 and again.stderr == "", again
    assert student(folder) == student(two[0])


@pytest.mark.distributed
@pytest.mark.slow
def test_killed_process_is_named_and_all_start_again(two: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*DDAD, "launch", "--nproc", "2", "--restarts", "1", *HELD, "--output", folder]
    (tmp_path / "hold").touch()
    with started(words, tmp_path) as process:
        until(process, lambda: bool(saved(folder)))
        workers(process.pid)[1].kill()
        (tmp_path / "hold").unlink()
        out, err = process.communicate()
    assert process.returncode == 0, (out, err)
    # Between them gloo may have its own words, and the launcher names rank 1 too where the agent ended rank 0 first.
    named, *_, restarted = [line for line in err.splitlines() if line.startswith("ddad: ")]
    assert "rank 1" in named and "the last checkpoint is kept" in named, err
    assert "starting all 2 processes again" in restarted, err
    assert student(folder) == student(two[0])


@pytest.mark.distributed
@pytest.mark.slow
def test_accelerate_on_one_machine_starts_two_processes(single: Path, tmp_path: Path) -> None:
    words = ["accelerate", "launch", "--config_file", LAUNCH / "accelerate/one-machine.yaml", "--module", "harness"]
    done = run([*words, "distill", *TINY, "distributed.world_size=2", "--output", "two"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "two")["world_size"] == 2
    assert 0 < distance(tmp_path / "two", single) < 1e-8


@pytest.mark.distributed
@pytest.mark.slow
def test_ray_on_this_machine_starts_two_processes(single: Path, tmp_path: Path) -> None:
    words = [sys.executable, LAUNCH / "ray/distill.py", "--nproc", "2", *TINY, "--output", "two"]
    done = run(words, tmp_path, {"RAY_ADDRESS": "local"})  # not a cluster that another test has started
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "two")["world_size"] == 2
    assert 0 < distance(tmp_path / "two", single) < 1e-8


@pytest.mark.parametrize(
    ("processes", "restarts", "named"), [(0, 0, "--nproc 0"), (-1, 0, "--nproc -1"), (1, -1, "--restarts -1")]
)
def test_numbers_that_make_no_sense_are_mistakes(processes: int, restarts: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        launcher.prepare(processes, restarts)


def test_threads_are_shared_out_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launcher.prepare(2, 0)
    assert os.environ["OMP_NUM_THREADS"] == "7" and os.environ["TORCH_CPP_LOG_LEVEL"] == "INFO"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    launcher.prepare(2, 0)
    assert os.environ["OMP_NUM_THREADS"] == "4"
    monkeypatch.delenv("OMP_NUM_THREADS")
    launcher.prepare(20, 0)
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("codes", "received", "code"),
    [
        ({}, None, 0),
        ({}, signal.SIGTERM, 0),  # it had come to its end
        ({1: 2, 0: 143}, None, 2),
        ({0: 3, 1: 3}, None, 3),
        ({0: 4, 1: -signal.SIGKILL}, None, 4),
        ({0: -signal.SIGTERM, 1: -signal.SIGSEGV}, None, 4),
        ({0: 4, 1: 1}, None, 1),
        ({1: 143}, None, 143),
        ({0: 130, 1: -signal.SIGTERM}, None, 130),
        ({0: 143, 1: -signal.SIGKILL}, signal.SIGTERM, 143),
        ({0: 130, 1: 130}, signal.SIGINT, 130),
    ],
)
def test_one_exit_code_for_all(codes: dict[int, int], received: int | None, code: int) -> None:
    assert launcher.outcome(codes, received) == code


def documents(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text()))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LAUNCH)))
def test_file_starts_the_command_unchanged_with_its_world_size(file: Path) -> None:
    text = file.read_text()
    assert re.search(r"harness[\",\s\\#]+distill\b", text)
    assert "distributed.world_size=" in text
    elastic = "MIN_NODES" in text
    assert ("distributed.min_world_size=" in text) == elastic
    assert elastic or file.name not in ("torchrun.sh", "job.yaml")
    # Without it a restart finds the addresses of processes that are gone, and may wait for them for ever.
    assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in text) == ("max-restarts" in text)


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda file: file.name)
def test_accelerate_reads_the_file_and_it_only_starts_processes(file: Path) -> None:
    (content,) = documents(file)
    read = ClusterConfig.from_yaml_file(str(file))
    assert read.distributed_type == "MULTI_GPU" and not read.use_cpu
    assert not content.keys() & {"deepspeed_config", "fsdp_config"}
    (wanted,) = re.findall(r"distributed\.world_size=(\d+)", file.read_text())
    assert int(wanted) == read.num_processes
    assert (read.num_machines > 1) == (file.name == "many-machines.yaml")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_shell_script_parses(file: Path) -> None:
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_slurm_script_asks_for_the_signal_and_goes_back_into_the_queue() -> None:
    text = (LAUNCH / "slurm/distill.sbatch").read_text()
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", text, re.MULTILINE)
    assert re.search(r"^trap requeue TERM$", text, re.MULTILINE) and 'scontrol requeue "$SLURM_JOB_ID"' in text


def test_kubernetes_job_is_indexed_and_its_numbers_agree() -> None:
    service, job = documents(LAUNCH / "kubernetes/job.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    assert job["kind"] == "Job" and spec["completionMode"] == "Indexed"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert spec["parallelism"] == spec["completions"] == int(variables["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["NPROC"])
    assert f"{job['metadata']['name']}-0.{pod['subdomain']}:" in container["args"][0]
    done = subprocess.run(["bash", "-n", "-c", container["args"][0]], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""
