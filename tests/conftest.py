"""What every test shares: one thread, a folder of its own, a quiet environment for what it starts, and the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, and inherited by every process a test starts. Two processes with two threads each on two
# cores are up to ten times slower than with one, and CPU results depend on the number of threads.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without bytecode every process compiles torch anew
os.environ.update(
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
)
if os.environ.get("DDAD_DATA"):  # a relative path is meant from where pytest was started
    os.environ["DDAD_DATA"] = str(Path(os.environ["DDAD_DATA"]).resolve())

import pytest
import torch

from tests.helpers import without_curves

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that takes `data_root` is marked `data`; one marked `root` skips for anyone else."""
    for item in items:
        if "data_root" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of fixtures that several tests share: not the tree, and left as empty as it was."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    assert not list(folder.iterdir()), "a fixture wrote to the current folder, which its tests do not share"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, shared_folder: Path) -> Iterator[Path]:
    """Its `tmp_path` is the current folder of a test and of what it starts: what lies in the tree changes nothing."""
    with pytest.MonkeyPatch.context() as patch:  # not the test's own, which it may undo
        patch.chdir(tmp_path)
        yield tmp_path


@pytest.fixture(autouse=True)
def own_seed() -> None:
    """What a test draws is the same alone, after others and in another order."""
    torch.manual_seed(0)


@pytest.fixture
def no_curves() -> Iterator[None]:
    """Runs of this test draw no curves.png."""
    with without_curves():
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data that DDAD_DATA names; the test skips where it is not set."""
    folder = os.environ.get("DDAD_DATA")
    if not folder:
        pytest.skip("needs DDAD_DATA: a folder with cifar-10-batches-py, caltech101, weights and the like")
    root = Path(folder)
    assert root.is_dir(), f"DDAD_DATA={folder}: no such folder"
    return root
