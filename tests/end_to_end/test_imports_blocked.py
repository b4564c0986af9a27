"""Building and running a configuration takes torch, torchvision, accelerate, timm, torchmetrics, and no more."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from harness import task
from harness.networks import build
from tests.helpers import environment
from tests.miniature import Nyu, camvid

ALLOWED = ("torch", "torchvision", "accelerate", "timm", "torchmetrics")

RUN = """
import importlib.machinery, importlib.metadata, json, sys
sys.path[:] = [place for place in sys.path if "__editable__" not in place]
blocked = set(json.loads(sys.argv[1]))
find = importlib.machinery.PathFinder.find_spec

def find_spec(name, path=None, target=None):
    if name.partition(".")[0] in blocked:  # as if it were not installed
        return None
    return find(name, path, target)

importlib.machinery.PathFinder.find_spec = find_spec
from_name = importlib.metadata.Distribution.from_name

def named(name):  # torchmetrics asks by this whether there is a matplotlib
    if name in blocked:
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

importlib.metadata.Distribution.from_name = named
"""

BODY = """
from harness import config, methods, resolve
from harness.commands import evaluate
from harness.training import distill
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
found = evaluate.of_run(reports[-1].folder, print, {})
assert found["agreement"] == result["agreement"]
changes = {key: value for key, value in over.items() if key not in ("task", "recipe", "rounds")}
again = distill.distill(resolve.resolve("classification", None, {**changes, "rounds": 2}))
assert again["agreement_on"] == "generated"
imported = {name.partition(".")[0] for name in sys.modules}
assert not imported & blocked, imported & blocked
"""


REHEARSAL = """
import time
from pathlib import Path
from benchmarks import gpu, step
from benchmarks.gpu import Budget
from benchmarks.gpu_suites import Suite
from harness.config.parse import merge
small = {
    "batch_size": 4, "student_steps": 2, "generator": {"latent_size": 8, "width": 4}, "replay": {"memory": 64.0},
    "teach": {"epochs": 1, "batch_size": 2},
}
plain = {**small, "teacher": {"network": "cnn8"}, "student": {"network": "cnn4"}}
images = {**plain, "classes": 3, "input": {"size": 16}, "data": {"name": "image_folder", "root": "data/images"}}
pixels = {"teacher": {"network": "unet8"}, "student": {"network": "unet4"}}
dense = {**small, **pixels, "batch_size": 2, "input": {"size": 16}, "data": {"size": None}}
chosen = (*json.loads(sys.argv[2]), "kd")
suites = {
    "images": Suite("cifar10-resnet20-resnet20", images, "mine.pth", chosen),
    "camvid": Suite("camvid-resnet18-mobilenetv2", dense, None, chosen),
    "nyuv2": Suite("nyuv2-resnet18-mobilenetv2", dense, None, chosen),
    "cifar10": Suite("cifar10-resnet20-resnet20", plain, None, chosen),
}
for name, networks in {"classes": plain, "pixels": {**dense, "classes": 3}}.items():
    step.PAIRS[name] = merge(step.PAIRS["digits" if name == "classes" else "deeplabv3"], networks)
budget = Budget(seconds=0.1, rate_rounds=1, step_rounds=1, variants=("eager", "bf16"), precision="fp32")
rows = Path("rows.jsonl")
queue = gpu.jobs(suites, {"classes": 4, "pixels": 4}, budget, [0])
assert gpu.work_through(queue, time.monotonic() + 600, "", rows) == []
print(gpu.report(rows))
imported = {name.partition(".")[0] for name in sys.modules}
assert not imported & blocked, imported & blocked
"""
"""Every kind of job of benchmarks.gpu, in the least that is one; its own networks are too large for this."""


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
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2


def test_the_block_works(tmp_path: Path, blocked: list[str]) -> None:
    for module in ("omegaconf", "sklearn.datasets", "mlflow"):
        done = subprocess.run(
            [sys.executable, "-c", f"{RUN}\nimport {module}", json.dumps(blocked)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert f"ModuleNotFoundError: No module named '{module.partition('.')[0]}'" in done.stderr


def test_what_a_gpu_machine_does_needs_nothing_else(tmp_path: Path, blocked: list[str]) -> None:
    """benchmarks.gpu: a third-party teacher, teachers taught there, steps; what is not there is left out and said."""
    compared = ["ddad:swift", "zskt", "fast"]  # replay and average, turns that share a batch, batches by many steps
    camvid(tmp_path / "data")
    nyu = Nyu(tmp_path / "data")
    nyu.folders(13, "image/{split}/{number:05}.png", "seg13/{split}/{number:05}.png", 255, 0)
    for part in ("train", "test"):
        for kind in range(3):
            folder = tmp_path / "data" / "images" / part / str(kind)
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (16, 16), (100 * kind, 20 * index, 0)).save(folder / f"{index}.png")
    (tmp_path / "data" / "weights").mkdir()
    torch.save(
        build.network(task.load("classification"), "cnn8", 3, 3).state_dict(), tmp_path / "data/weights/mine.pth"
    )
    done = subprocess.run(
        [sys.executable, "-c", RUN + REHEARSAL, json.dumps(blocked), json.dumps(compared)],
        cwd=tmp_path, env=environment({"DDAD_DATA": "data"}), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "failed" in row]
    steps = {f"step/{pair}/{variant}" for pair in ("classes", "pixels") for variant in ("eager", "bf16")}
    methods = [*compared, "kd"]
    dense = [method for method in methods if method != "fast"]  # which makes an image for a class
    runs = {f"{suite}/{method}/0" for suite in ("camvid", "nyuv2") for method in dense}
    taught = {"camvid/teach", "nyuv2/teach"}
    assert {row["job"] for row in rows} == steps | taught | runs | {f"images/{method}/0" for method in methods}
    assert done.stdout.count("left out") == 2 + 1 + len(methods), done.stdout
    assert "cifar10/teach: left out: data.name=cifar10: " in done.stdout
