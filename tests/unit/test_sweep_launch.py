"""What a sweep is started with on several machines: files for Ray and SLURM, checked without either cluster."""

from __future__ import annotations

import shutil
import subprocess
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
