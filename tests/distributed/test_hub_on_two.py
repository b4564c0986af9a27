"""A teacher from a hub on two processes: downloaded once, and still the same one when the branch has moved."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from harness import task
from harness.networks import build
from tests.distributed.starting import TINY, result, run
from tests.fake_hub import environment, serving
from tests.helpers import DDAD


def weights(seed: int) -> bytes:
    torch.manual_seed(seed)
    return safetensors.torch.save(build.network(task.load("classification"), "cnn8", 10, 1).state_dict())


@pytest.mark.distributed
@pytest.mark.slow
def test_one_process_downloads_and_the_run_keeps_its_commit(tmp_path: Path) -> None:
    words = (*TINY, "teacher.network=cnn8", "teacher.checkpoint=hub:someone/teacher", "rounds=2", "--output", "run")
    with serving() as hub:
        variables = environment(hub.url, tmp_path / "cache")
        commit = hub.add("someone/teacher", {"model.safetensors": weights(1)})
        done = run([*DDAD, "launch", "--nproc", "2", *words], tmp_path, variables)
        assert done.returncode == 0, done.stderr
        assert hub.downloads() == ["/someone/teacher/resolve/main/model.safetensors"]
        record = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["records"]["teacher.checkpoint"]
        assert record["revision"] == commit and record["sha256"] == hashlib.sha256(weights(1)).hexdigest()
        assert result(tmp_path / "run")["teacher"]["sha256"] == record["sha256"]
        hub.add("someone/teacher", {"model.safetensors": weights(2)})
        scored = run([*DDAD, "evaluate", "run", "--json"], tmp_path, variables)
        found = json.loads(scored.stdout)
        assert found["missing"] == [] and found["agreement"] == result(tmp_path / "run")["agreement"], scored.stderr
        assert len(hub.downloads()) == 1
