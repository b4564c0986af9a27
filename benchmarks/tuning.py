"""Tuning of the methods that are compared: as many trials for each, on the suite's own teacher and without data.

    python -m benchmarks.tuning digits      # 60 trials of 400 student updates for each method
    OMP_NUM_THREADS=1 python -m benchmarks.tuning fashion     # 24 trials of 30 seconds, after `methods fashion --rates`

Each method is swept by `ddad sweep` over benchmarks/spaces/METHOD.yaml, around its published settings. All are judged
on one probe, of images that `ddad` as published makes. What counts as found is the best of the trials, or nothing where
the published settings are as good. On Fashion-MNIST, where settings are closer to each other than the seeds of one,
both are run again with three other seeds, and the means decide. Sweeps are kept below sweeps/tuning/SUITE, and one that
is there is not run again; benchmarks/tuned/SUITE.yaml has what was found so far.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import methods
from benchmarks.methods import RESULTS, TUNED, Budget, Run, read, rounds_of
from harness.errors import UserError


@dataclass(frozen=True)
class Plan:
    """How each method of a suite is tuned."""

    trials: int
    budget: Budget
    """Of a trial."""
    probe: Budget
    """Of the run that makes the probe."""
    names: tuple[str, ...]
    options: tuple[str, ...] = ()
    """Of every sweep."""
    repeat: tuple[str, ...] = ()
    """The option by which a method's best trial and its own settings are run with more seeds."""


BASELINES = ("dfad", "dafl", "zskt", "dfq", "deepinversion", "cmi", "fast", "nayer")

PLANS = {
    "digits": Plan(60, ("updates", 400), ("updates", 1200), BASELINES),
    "fashion": Plan(
        24,
        ("seconds", 30.0),
        ("seconds", 30.0),
        ("ddad:hinted", "ddad:noisy", "ddad:soft", "nayer", "fast", "cmi"),
        ("--scheduler", "none"),
        ("--retrain", "1-3"),
    ),
}

SWEEPS = Path("sweeps") / "tuning"

HEAD = """\
# Settings that `python -m benchmarks.tuning {suite}` found: for each method the best of its trials by the data-free
# objective of its sweep. Without values none was better than its own settings, or the trials are of its development.
"""


def sweep(suite: str, name: str, *words: str) -> dict[str, Any]:
    """The report of a sweep in SWEEPS / suite / name, which is run or resumed if it is not finished."""
    folder, chosen = SWEEPS / suite / name, methods.SUITES[suite]
    if not _finished(folder, "--retrain" in words):
        going = ["--resume"] if (folder / "sweep.json").exists() else []
        options = [*words, *PLANS[suite].options, "--parallel", "1", "--output", str(folder), *going]
        command = ["-m", "harness", "sweep", chosen.recipe, *chosen.words, *options, "tracking.uri=none"]
        if code := subprocess.run([sys.executable, *command], check=False).returncode:
            raise UserError(f"the sweep in {folder} ended with exit code {code}")
    return _report(folder)


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def _finished(folder: Path, repeated: bool) -> bool:
    """Whether a sweep has its report, with repetitions where these are asked for."""
    return (folder / "report.json").exists() and (not repeated or bool(_report(folder)["repetitions"]))


def found(report: dict[str, Any]) -> dict[str, Any]:
    """What a sweep found, to three digits; nothing where its defaults are as good, in the mean over seeds if it has."""
    best, default = report["best"], report["default"]
    scores = {"best": best["objective"], "default": default.get("objective", default["agreement"])}  # older: agreement
    if repeated := report.get("repetitions"):
        scores = {kind: repeated[kind]["objective"]["mean"] or 0.0 for kind in scores}  # None: all of them failed
    if scores["best"] <= scores["default"]:
        return {}
    return {path: float(f"{v:.3g}") if isinstance(v, float) else v for path, v in best["sample"].items()}


def write(suite: str, values: dict[str, dict[str, Any]]) -> None:
    """The settings of every method, a line each; entries of others stay."""
    entries = methods.tuning(suite) | {n: {"trials": PLANS[suite].trials, "values": v} for n, v in values.items()}
    TUNED.mkdir(exist_ok=True)
    lines = [f"{name}: {json.dumps(entry)}\n" for name, entry in entries.items()]
    (TUNED / f"{suite}.yaml").write_text(HEAD.format(suite=suite) + "".join(lines))


def rounds(suite: str, method: str, budget: Budget) -> str:
    """The word for a method's rounds in a budget."""
    return f"rounds={rounds_of(Run(suite, method, 0, ()), budget, read(RESULTS / f'{suite}.jsonl'))}"


def tune(suite: str) -> None:
    """Sweeps every method of a suite."""
    plan = PLANS[suite]
    methods.teach(suite, ())
    sweep(suite, "probe", "--trials", "1", rounds(suite, "ddad", plan.probe))
    for name in plan.names:
        method, _, variant = name.partition(":")
        space = Path(__file__).with_name("spaces") / f"{variant or method}.yaml"
        options = ["--space", str(space), "--trials", str(plan.trials), "--probe", str(SWEEPS / suite / "probe")]
        options += plan.repeat
        words = [f"method={method}", f"variant={variant or 'paper'}", rounds(suite, name, plan.budget)]
        write(suite, {name: found(sweep(suite, variant or method, *options, *words))})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=PLANS)
    suite = parser.parse_args().suite
    try:
        tune(suite)
    except UserError as error:
        sys.exit(f"benchmarks.tuning: {error}")
    print((TUNED / f"{suite}.yaml").read_text())


if __name__ == "__main__":
    main()
