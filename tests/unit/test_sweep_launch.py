"""How a sweep starts on several machines: the files for Ray and SLURM, and the resources; without a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import UserError
from tests.helpers import ROOT
from tests.sweeps import OVERRIDES, make_plan

LAUNCH = ROOT / "launch"


def test_ray_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content: dict[str, Any] = yaml.safe_load((LAUNCH / "ray" / "cluster.yaml").read_text())
    validate_config(prepare_config(content))
    with pytest.raises(Exception, match="bogus"):  # the check finds mistakes
        validate_config(prepare_config({**content, "bogus": 1}))


def test_bash_accepts_the_slurm_script() -> None:
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run([bash, "-n", LAUNCH / "slurm" / "sweep.sbatch"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def slurm(folder: Path, **programs: str) -> subprocess.Popen[str]:
    """Starts the script as SLURM does on one node; shell scripts replace the programs of SLURM, Ray and ddad."""
    (folder / "bin").mkdir()
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    written = {"scontrol": 'if [ "$1" = show ]; then echo node; else echo "$@"; fi', "srun": "true", **programs}
    for name, text in written.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    variables = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node",
                 "SLURM_NNODES": "1", "SLURM_RESTART_COUNT": "1",
                 "PATH": f"{folder}/bin:{os.environ['PATH']}"}  # fmt: skip
    return subprocess.Popen(
        ["bash", LAUNCH / "slurm" / "sweep.sbatch", "digits"], env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_terminated_job_is_requeued_before_and_during_its_sweep(tmp_path: Path) -> None:
    output = {}
    waits = "trap 'exit 130' TERM; sleep 0.5; touch {}; while :; do sleep 0.1; done"
    for name, programs in {
        "early": {"ray": f"touch {tmp_path}/early/here; exit 1"},
        "late": {"ray": "true", "ddad": waits.format(tmp_path / "late" / "here")},
    }.items():
        (tmp_path / name).mkdir()
        process = slurm(tmp_path / name, **programs)
        while not (tmp_path / name / "here").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output[name] = process.communicate()[0]
    assert output == {"early": "requeue 7\n", "late": "requeue 7\n"}


def test_a_requeued_job_starts_a_sweep_that_had_not_started(tmp_path: Path) -> None:
    process = slurm(tmp_path, ray="true", ddad='echo "$@"; [ "${!#}" != --resume ] || exit 2')
    address = f"--address node:{20_000 + 7}"
    assert process.communicate()[0] == f"sweep digits {address} --resume\nsweep digits {address}\n"
    assert process.returncode == 0


def test_a_node_holds_as_many_fractions_of_a_cpu_as_fit(tmp_path: Path) -> None:
    from tune.ray_backend.cluster import check_resources

    ten = make_plan(tmp_path, cpus=0.1, overrides={**OVERRIDES, "distributed": {"world_size": 10}})
    check_resources(ten, [{"CPU": 1.0}])  # 1.0 // 0.1 is 9.0
    with pytest.raises(UserError, match=r"needs 10 processes with 0\.1 CPUs and 0 GPUs each; the nodes have 0\.9 CPUs"):
        check_resources(ten, [{"CPU": 0.9}])
