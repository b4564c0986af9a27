"""What a sweep is started with on several machines: files for Ray and SLURM, checked without either cluster."""

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

from tests.helpers import ROOT

LAUNCH = ROOT / "launch"


def test_rays_cluster_file_is_one_that_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content: dict[str, Any] = yaml.safe_load((LAUNCH / "ray" / "cluster.yaml").read_text())
    validate_config(prepare_config(content))
    with pytest.raises(Exception, match="bogus"):  # it does look
        validate_config(prepare_config({**content, "bogus": 1}))


def test_slurms_script_is_one_that_bash_takes() -> None:
    bash = shutil.which("bash")
    assert bash
    done = subprocess.run([bash, "-n", LAUNCH / "slurm" / "sweep.sbatch"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def slurm(folder: Path, **programs: str) -> subprocess.Popen[str]:
    """The script as SLURM starts it on one node; in place of SLURM, Ray and ddad there are lines of shell."""
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


def test_a_job_that_is_ended_goes_back_into_the_queue_also_before_its_sweep_has_begun(tmp_path: Path) -> None:
    said = {}
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
        said[name] = process.communicate()[0]
    assert said == {"early": "requeue 7\n", "late": "requeue 7\n"}


def test_a_job_that_was_ended_before_its_sweep_began_begins_it(tmp_path: Path) -> None:
    process = slurm(tmp_path, ray="true", ddad='echo "$@"; [ "${!#}" != --resume ] || exit 2')
    address = f"--address node:{20_000 + 7}"
    assert process.communicate()[0] == f"sweep digits {address} --resume\nsweep digits {address}\n"
    assert process.returncode == 0
