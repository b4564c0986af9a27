"""Methods against each other: the same teacher, student, seeds and budget, in one table and one figure.

    python -m benchmarks.methods digits                       # every method, seeds 0-4, equal student updates
    python -m benchmarks.methods digits --rates               # first, on idle cores: how fast each method is here
    python -m benchmarks.methods digits --seconds 60          # then, equal wall time, as rounds by those rates
    python -m benchmarks.methods cifar10 --methods ddad dfad --seeds 0 teacher.checkpoint=resnet20.th

Each run is a `ddad distill` in a process of its own. Results are added to benchmarks/results/SUITE.jsonl as they come,
and what is finished there is not run again; a run that was ended is taken up from its folder. Seconds are those of the
rounds with twenty evaluations between them; memory is the host's. `path=value` words go to every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.comparison import draw, table
from harness import folder, log, methods, resolve
from harness.config import identity
from harness.errors import UserError
from harness.strict import merge

RESULTS = Path(__file__).with_name("results")

EVALUATIONS = 20
"""Points of a curve."""

RATE_ROUNDS = 30
"""Rounds from which a method's speed is taken."""

IDLE = 0.5
"""Load average above which the machine is not idle, and a speed would be of something else too."""


@dataclass(frozen=True)
class Suite:
    """One teacher and student pair, and how long its methods are compared."""

    recipe: str
    seeds: tuple[int, ...]
    updates: int
    """Student updates of every method."""
    words: tuple[str, ...] = ()
    """`path=value` over the recipe, for every method."""
    tuned: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """`path=value` by method, as tuning found them."""
    trials: int = 0
    """Tuning trials that every method had."""


_FASHION = (
    "data.name=fashion_mnist", "classes=10", "input.size=28", "teacher.channels=gray", "teacher.mean=[0.286]",
    "teacher.std=[0.353]", "teacher.network=cnn32", "student.network=cnn12", "generator.width=32", "teach.epochs=10",
)  # fmt: skip

SUITES: dict[str, Suite] = {
    "digits": Suite("digits", (0, 1, 2, 3, 4), 1_200),
    "fashion": Suite("classification", (0, 1, 2), 2_000, _FASHION),
    "cifar10": Suite("cifar10-resnet20-resnet20", (0,), 2_000),
    "cifar10-gpu": Suite("cifar10-resnet34-resnet18", (0, 1, 2), 125_000),
}

DATA_FREE = ["ddad:swift", *(name for name, method in methods.METHODS.items() if method.data_free)]
"""What is compared where nothing is said: the best variant of our own, and every method as published."""


@dataclass(frozen=True)
class Run:
    """One run of a comparison: `method` is NAME or NAME:VARIANT."""

    suite: str
    method: str
    seed: int
    words: tuple[str, ...]

    def command(self, rounds: int, evaluate_every: int) -> tuple[str, ...]:
        """The words of `ddad distill` after its name."""
        suite = SUITES[self.suite]
        name, _, variant = self.method.partition(":")
        own = (f"method={name}", f"variant={variant or 'paper'}", f"seed={self.seed}", f"rounds={rounds}")
        quiet = (f"evaluate_every={evaluate_every}", f"log_every={max(1, rounds // 100)}", "tracking.uri=none")
        return (suite.recipe, *suite.words, *self.words, *dict(suite.tuned).get(self.method, ()), *own, *quiet)

    def steps(self) -> int:
        """Student updates of a round."""
        recipe, *words = self.command(1, 0)
        config = resolve.resolve(recipe, None, resolve.read_overrides(words))
        turns = methods.METHODS[config.method].turns(config)
        return sum(turn.kind == "student" for turn in turns)


def execute(run: Run, rounds: int, evaluate_every: int) -> dict[str, Any]:
    """Runs to the end, or reads what it ended with; its row."""
    recipe, *words = run.command(rounds, evaluate_every)
    config = resolve.resolve(recipe, None, resolve.read_overrides(words))
    output = Path("runs") / "methods" / f"{run.suite}-{config.method}-{identity(config)}"
    words = [*words, "pictures=false", "--output", str(output)]
    finished = folder.result(output) is not None  # by a process that ended before it could say so
    process = subprocess.Popen([sys.executable, "-m", "harness", "distill", recipe, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    result = folder.result(output)
    if process.returncode or result is None:
        raise UserError(f"ddad distill {recipe} {' '.join(words)} ended with exit code {process.returncode}")
    score = next(value for key, value in result["student"].items() if key not in ("network", "parameters"))
    key = "evaluation/agreement"
    curve = [[row["seconds"], row[key]] for row in log.read(output / "metrics.jsonl") if key in row]
    return {
        "suite": run.suite, "method": config.method, "variant": config.variant, "seed": run.seed,
        "words": list(run.words), "trials": SUITES[run.suite].trials, "rounds": rounds,
        "student_updates": result["student_updates"], "score": score, "agreement": result["agreement"],
        "teacher": result["teacher"], "seconds": result["wall_seconds"],
        "memory": None if finished else usage.ru_maxrss / 1024,
        "rounds_per_second": result["rounds_per_second"], "curve": curve, "identity": identity(config), **machine(),
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": device, "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "torch": torch.__version__, "load": round(os.getloadavg()[0], 2), "commit": folder.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


Budget = tuple[Literal["updates", "seconds"], float]
"""Student updates, or seconds, that every method gets."""


def matching(rows: Sequence[dict[str, Any]], run: Run, budget: str) -> dict[str, Any] | None:
    """The row of a run, where it is finished."""
    name, _, variant = run.method.partition(":")
    wanted = (run.suite, name, variant or "paper", run.seed, list(run.words), budget)
    keys = ("suite", "method", "variant", "seed", "words", "budget")
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)


def rounds_of(run: Run, budget: Budget, rows: Sequence[dict[str, Any]]) -> int:
    """Rounds of a run's budget; UserError where equal time is asked for and the method's speed is not known."""
    kind, amount = budget
    if kind == "updates":
        return max(1, int(amount) // run.steps())
    rate = matching(rows, Run(run.suite, run.method, 0, run.words), "rate")
    if rate is None:
        raise UserError(f"the speed of {run.method} on {run.suite} is not known: run with --rates first, on idle cores")
    return max(1, round(amount * float(rate["rounds_per_second"])))


def compare(suite: str, names: Sequence[str], seeds: Sequence[int], budget: Budget, words: Sequence[str]) -> str:
    """Runs what is missing, seed by seed so that any part of it is a comparison; returns the table."""
    file, (kind, amount) = RESULTS / f"{suite}.jsonl", budget
    label, found = f"{kind}={amount:g}", []
    for seed in seeds:
        for name in names:
            run, rows = Run(suite, name, seed, tuple(words)), read(file)
            row = matching(rows, run, label)
            if row is None:
                rounds = rounds_of(run, budget, rows)
                row = {"budget": label, **execute(run, rounds, max(1, rounds // EVALUATIONS))}
                add(file, row)
            print(f"{name}, seed {seed}: {row['score']:.2%} in {row['seconds']:.0f} s", flush=True)
            found.append(row)
    draw(found, RESULTS / f"{suite}-{kind}.png", f"{suite}, {amount:g} {kind} for each method")
    return table(found)


def measure_rates(suite: str, names: Sequence[str], words: Sequence[str]) -> None:
    """The speed of each method, alone on this machine; UserError where it is not idle."""
    file = RESULTS / f"{suite}.jsonl"
    for name in names:
        run = Run(suite, name, 0, tuple(words))
        if matching(read(file), run, "rate"):
            continue
        if (load := os.getloadavg()[0]) > IDLE and not torch.cuda.is_available():
            raise UserError(f"the machine is not idle (load average {load:.2f}, above {IDLE}): wait and give it again")
        row = {"budget": "rate", **execute(run, RATE_ROUNDS, RATE_ROUNDS)}
        add(file, row)
        print(f"{name}: {row['rounds_per_second']:.3g} rounds a second", flush=True)
        while os.getloadavg()[0] > IDLE and name != names[-1]:
            time.sleep(5)  # until this run has left the average


def read(file: Path) -> list[dict[str, Any]]:
    """All rows of a results file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def add(file: Path, row: dict[str, Any]) -> None:
    """One more row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")


def teach(suite: str, words: Sequence[str]) -> None:
    """The suite's teacher, where it is to be taught and not there yet."""
    chosen = (*SUITES[suite].words, *words)
    config = resolve.resolve(SUITES[suite].recipe, None, merge({}, resolve.read_overrides(chosen)))
    if not Path(str(config.teacher.checkpoint)).exists():
        command = [sys.executable, "-m", "harness", "teach", SUITES[suite].recipe, *chosen, "tracking.uri=none"]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"the teacher could not be taught, exit code {code}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--methods", nargs="+", default=DATA_FREE, metavar="METHOD[:VARIANT]")
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    parser.add_argument("--updates", type=int, default=None, help="student updates of each run, instead of the suite's")
    parser.add_argument("--seconds", type=float, default=None, help="equal wall time instead of equal updates")
    parser.add_argument("--rates", action="store_true", help="measure the methods' speeds on idle cores, and end")
    parser.add_argument("words", nargs="*", metavar="path=value")
    given = parser.parse_intermixed_args()
    seeds = SUITES[given.suite].seeds if given.seeds is None else given.seeds
    try:
        teach(given.suite, given.words)
        if given.rates:
            measure_rates(given.suite, given.methods, given.words)
        else:
            budget: Budget = ("updates", given.updates or SUITES[given.suite].updates)
            if given.seconds is not None:
                budget = ("seconds", given.seconds)
            print(compare(given.suite, given.methods, seeds, budget, given.words))
    except UserError as error:
        sys.exit(f"benchmarks.methods: {error}")


if __name__ == "__main__":
    main()
