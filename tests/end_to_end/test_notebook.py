"""The notebook in examples/ runs from top to bottom, as Jupyter would run it, and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.end_to_end.conftest import CPU
from tests.helpers import ROOT, environment

NOTEBOOK = ROOT / "examples/from_python.ipynb"


def outputs(cell: nbformat.NotebookNode) -> str:
    """What a cell printed or ended with."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(texts)


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    assert "/work" not in NOTEBOOK.read_text() and str(Path.home()) not in NOTEBOOK.read_text()


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(CPU).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, kernel_name="python3", startup_timeout=600, resources=where)
    client.execute()
    found = [outputs(cell) for cell in notebook.cells if cell.cell_type == "code"]
    assert "round 80" in found[2] and "teacher.network=cnn32 is not the module" in found[2]
    assert found[3].endswith("True")
    assert 0.5 < float(found[5]) <= 1
    assert len(list((tmp_path / "generated").rglob("*.png"))) == 100
    assert notebook.cells[-1].outputs[0]["data"]["image/png"]
    assert os.environ["IPYTHONDIR"] == str(tmp_path / "ipython")
