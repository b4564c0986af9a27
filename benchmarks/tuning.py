"""Tuning of the methods that are compared: the same number of trials for each, on digits, judged without data.

    python -m benchmarks.tuning     # sweeps into sweeps/tuning, keeping what is there; writes benchmarks/tuned.yaml

Each method is swept by `ddad sweep` over benchmarks/spaces/METHOD.yaml, around its published settings, in short runs
of UPDATES student updates. All are judged on one probe, of the images that `ddad` as published invents on digits. What
counts as found is the best of the trials, or nothing where the published settings are as good.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.methods import TUNED, Run

TRIALS, UPDATES = 60, 400

OWN = {"ddad:swift": {"trials": 60, "values": {}}, "ddad:aimed": {"trials": 250, "values": {}}}
"""Variants that hold what their own trials found, by hand and by sweeps (benchmarks/RESULTS-methods.md)."""

METHODS = ("dfad", "dafl", "zskt", "dfq", "deepinversion", "cmi", "fast", "nayer")

SWEEPS = Path("sweeps") / "tuning"

HEAD = """\
# Settings that tuning found on digits, as `python -m benchmarks.tuning` writes them: for each method the best of its
# trials by the agreement with the teacher on a frozen probe, without data.
"""


def sweep(name: str, *words: str) -> dict[str, Any]:
    """The report of a sweep of digits in SWEEPS / name, which is run or resumed if it is not finished."""
    folder = SWEEPS / name
    if not (folder / "report.json").exists():
        going = ["--resume"] if (folder / "sweep.json").exists() else []
        command = ["-m", "harness", "sweep", "digits", *words, "--parallel", "1", "--output", str(folder), *going]
        subprocess.run([sys.executable, *command, "tracking.uri=none"], check=True)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def found(report: dict[str, Any]) -> dict[str, Any]:
    """What a sweep found, to three digits; nothing where its defaults are as good."""
    best, default = report["best"], report["default"]
    if best["objective"] <= default.get("objective", default["agreement"]):  # older reports had agreement only
        return {}
    return {path: float(f"{v:.3g}") if isinstance(v, float) else v for path, v in best["sample"].items()}


def write(values: dict[str, dict[str, Any]], file: Path) -> None:
    """The settings of every method, a line each."""
    entries = OWN | {name: {"trials": TRIALS, "values": one} for name, one in values.items()}
    file.write_text(HEAD + "".join(f"{name}: {json.dumps(entry)}\n" for name, entry in entries.items()))


def main() -> None:
    """The command."""
    sweep("probe", "--trials", "1")
    values = {}
    for name in METHODS:
        rounds = UPDATES // Run("digits", name, 0, ()).steps()
        space = Path(__file__).with_name("spaces") / f"{name}.yaml"
        options = ["--space", str(space), "--trials", str(TRIALS), "--probe", str(SWEEPS / "probe")]
        values[name] = found(sweep(name, *options, f"method={name}", f"rounds={rounds}"))
    write(values, TUNED)
    print(TUNED.read_text())


if __name__ == "__main__":
    main()
