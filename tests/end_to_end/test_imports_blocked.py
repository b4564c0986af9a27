"""Building and running a configuration takes torch, torchvision, accelerate, timm, torchmetrics, and no more."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.helpers import ROOT, environment

ALLOWED = ("torch", "torchvision", "accelerate", "timm", "torchmetrics")

RUN = """
import importlib.machinery, json, sys
sys.path[:] = [place for place in sys.path if "__editable__" not in place]
blocked, hits = set(json.loads(sys.argv[1])), set()
find = importlib.machinery.PathFinder.find_spec

def find_spec(name, path=None, target=None):
    if name.partition(".")[0] in blocked:  # as if it were not installed
        hits.add(name)
        return None
    return find(name, path, target)

importlib.machinery.PathFinder.find_spec = find_spec
"""

BODY = """
from harness import config, distill, methods, resolve, scoring
over = {
    "task": "classification", "recipe": "bare", "rounds": 3, "batch_size": 32, "classes": 4, "log_every": 1,
    "input": {"size": 16}, "pictures": False, "tracking": {"uri": "none"}, "evaluate_every": 2,
    "weights": {"one_hot": 1.0, "class_balance": 1.0, "activation": 0.1, "tv": 0.1, "l2": 0.1},
    "teacher": {"network": sys.argv[2], "checkpoint": "untrained"}, "student": {"network": "cnn4"},
    "generator": {"width": 4, "latent_size": 8},
}
reports = list(distill.rounds(config.build(over)))
assert [report.round for report in reports] == [1, 2, 3, 3], reports
result = reports[-1].result
found = scoring.of_run(reports[-1].folder, print, {})
assert found["agreement"] == result["agreement"]
changes = {key: value for key, value in over.items() if key not in ("task", "recipe", "rounds")}
again = distill.distill(resolve.resolve("classification", None, {**changes, "rounds": 2}))
assert again["agreement_on"] == "generated"
imported = {name.partition(".")[0] for name in sys.modules}
assert not imported & blocked, imported & blocked
print(json.dumps(sorted(hits)))
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: tuple[str, ...]) -> set[str]:
    """The distributions that installing these brings along, extras left out."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = normal(queue.pop())
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        wanted = [Requirement(line) for line in requires]
        queue += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def blocked() -> list[str]:
    """Every top-level module that is installed and does not belong to the closure."""
    allowed = closure(ALLOWED)
    assert {"torch", "numpy", "pillow", "pyyaml"} <= allowed
    others = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {normal(owner) for owner in owners} & (allowed | {"ddad"})
    ]
    assert {"mlflow", "sklearn", "matplotlib", "omegaconf", "rich", "ray", "deepspeed", "transformers"} <= set(others)
    return sorted(others)


@pytest.mark.parametrize("teacher", ["cnn8", "timm:resnet10t", "torchvision:resnet18"])
def test_config_is_built_and_run_with_nothing_else_installed(tmp_path: Path, blocked: list[str], teacher: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN + BODY, json.dumps(blocked), teacher],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs").is_dir() and (ROOT / "harness").is_dir()


def test_the_block_works(tmp_path: Path, blocked: list[str]) -> None:
    for module in ("omegaconf", "sklearn.datasets", "mlflow"):
        done = subprocess.run(
            [sys.executable, "-c", f"{RUN}\nimport {module}", json.dumps(blocked)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert f"ModuleNotFoundError: No module named '{module.partition('.')[0]}'" in done.stderr
