"""Methods against each other: the same teacher, student, seeds and budget, in one table and one figure.

    python -m benchmarks.methods digits                       # every method, seeds 0-4, equal student updates
    python -m benchmarks.methods digits --rates               # first: how fast each method is here
    python -m benchmarks.methods digits --seconds 20 --tuned  # then, equal wall time, as rounds by those rates
    python -m benchmarks.methods cifar10 --methods ddad dfad --seeds 0 teacher.checkpoint=resnet20.th

Each run is a `ddad distill` in a process of its own. Results are added to benchmarks/results/SUITE.jsonl as they come,
and what is finished there is not run again; a run that was ended is taken up from its folder. Where a method's speed is
known, seconds are those that its rounds take at that speed, so that what else the machine did meanwhile does not
count; else those of the clock, evaluations and all. Memory is the host's. `path=value` words go to every
run.
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

import psutil
import torch
import yaml

from benchmarks import pace, samples
from benchmarks.comparison import draw, table
from harness import methods, resolve, task
from harness.config import Config, identity
from harness.errors import UserError
from harness.run import folder, metrics

RESULTS = Path(__file__).with_name("results")

RATE_ROUNDS = 60
"""Rounds from which a method's speed is taken, where so many do not take too long."""

TUNED = Path(__file__).with_name("tuned")

IDLE = 15.0
"""Percent of all cores that others may use while a speed is measured; above, it would be of something else too."""


@dataclass(frozen=True)
class Suite:
    """One teacher and student pair, and how long its methods are compared."""

    recipe: str
    seeds: tuple[int, ...]
    updates: int
    """Student updates of every method."""
    words: tuple[str, ...] = ()
    """`path=value` over the recipe, for every method."""
    evaluations: int = 10
    """Points of a curve."""


FASHION = (
    "data.name=fashion_mnist", "classes=10", "input.size=16", "teacher.channels=gray", "teacher.mean=[0.286]",
    "teacher.std=[0.353]", "teacher.network=cnn32", "student.network=cnn12", "generator.width=32", "teach.epochs=6",
)  # fmt: skip
"""Fashion-MNIST at 16x16, with the recipe's batches of 128."""

SUITES: dict[str, Suite] = {
    "digits": Suite("digits", (0, 1, 2, 3, 4), 1_200),
    "fashion": Suite("classification", (0, 1, 2), 2_000, (*FASHION, "batch_size=32")),  # more updates a second pay here
    "cifar10": Suite("cifar10-resnet20-resnet20", (0,), 2_000, evaluations=4),
    "cifar10-gpu": Suite("cifar10-resnet34-resnet18", (0, 1, 2), 125_000),
}

DATA_FREE = [
    "ddad:hinted",
    "ddad:noisy",
    "ddad:soft",
    "ddad:held",
    "ddad:fresh",
    "ddad:aimed",
    "ddad:swift",
    *(name for name, method in methods.METHODS.items() if method.data_free),
]
"""What is compared where nothing is said: variants of our own, and every method as published."""


def tuning(suite: str) -> dict[str, dict[str, Any]]:
    """{method: {"trials": how many it had, "values": {path: value} that were found}}, on a suite's own teacher."""
    file = TUNED / f"{suite}.yaml"
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text()) if file.exists() else {}
    return found


@dataclass(frozen=True)
class Run:
    """One run of a comparison: `method` is NAME or NAME:VARIANT, `tuned` with the values that tuning found."""

    suite: str
    method: str
    seed: int
    words: tuple[str, ...]
    tuned: bool = False

    def trials(self) -> int:
        """Tuning trials behind its settings: none of a published method as published."""
        entry = tuning(self.suite).get(self.method, {"trials": 0, "values": {}})
        return int(entry["trials"]) if self.tuned or not entry["values"] else 0

    def command(self, rounds: int, evaluate_every: int) -> tuple[str, ...]:
        """The words of `ddad distill` after its name."""
        suite = SUITES[self.suite]
        name, _, variant = self.method.partition(":")
        own = (f"method={name}", f"variant={variant or 'paper'}", f"seed={self.seed}", f"rounds={rounds}")
        quiet = (f"evaluate_every={evaluate_every}", f"log_every={max(1, rounds // 100)}", "tracking.uri=none")
        values = tuning(self.suite).get(self.method, {"values": {}})["values"] if self.tuned else {}
        found = [f"{path}={json.dumps(value)}" for path, value in values.items()]
        return (suite.recipe, *suite.words, *self.words, *found, *own, *quiet)

    def config(self, rounds: int) -> Config:
        """The configuration of a run with this number of rounds."""
        recipe, *words = self.command(rounds, 0)
        return resolve.resolve(recipe, None, resolve.read_overrides(words))

    def steps(self) -> int:
        """Student updates of a round."""
        config = self.config(1)
        return sum(turn.kind == "student" for turn in methods.METHODS[config.method].turns(config))


def run_folder(run: Run, config: Config) -> Path:
    """The run's folder."""
    return Path("runs") / "methods" / f"{run.suite}-{config.method}-{identity(config)}"


def execute(run: Run, rounds: int, evaluate_every: int) -> dict[str, Any]:
    """Runs to the end, or reads what it ended with; its row."""
    recipe, *words = run.command(rounds, evaluate_every)
    config = resolve.resolve(recipe, None, resolve.read_overrides(words))
    output = run_folder(run, config)
    words = [*words, "pictures=false", "--output", str(output)]
    finished = folder.result(output) is not None  # by a process that ended before it could say so
    process = subprocess.Popen([sys.executable, "-m", "harness", "distill", recipe, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    result = folder.result(output)
    if process.returncode or result is None:
        raise UserError(f"ddad distill {recipe} {' '.join(words)} ended with exit code {process.returncode}")
    metric = task.load(config.task).primary_metric
    key = "evaluation/agreement"
    curve = [[row["round"], row[key]] for row in metrics.read(output / "metrics.jsonl") if key in row]
    return {
        "suite": run.suite, "method": config.method, "variant": config.variant, "seed": run.seed,
        "words": list(run.words), "tuned": run.tuned, "trials": run.trials(), "rounds": rounds,
        "student_updates": result["student_updates"], "metric": metric, "score": result["student"][metric],
        "agreement": result["agreement"], "teacher": result["teacher"], "wall_seconds": result["wall_seconds"],
        "memory": None if finished else round(usage.ru_maxrss / 1024, 1),
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


def known(run: Run, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What --rates measured for a run's method: `speeds`, `preparation`; tuned or not, its steps are the same."""
    name, _, variant = run.method.partition(":")
    wanted = ("rate", run.suite, name, variant or "paper", list(run.words))
    keys = ("budget", "suite", "method", "variant", "words")
    return next((row for row in rows if tuple(row[key] for key in keys) == wanted), None)


def rounds_of(run: Run, budget: Budget, rows: Sequence[dict[str, Any]]) -> int:
    """Rounds of a run's budget; UserError where equal time is asked for and the method's speed is not known."""
    kind, amount = budget
    if kind == "updates":
        return max(1, int(amount) // run.steps())
    rate = known(run, rows)
    if rate is None:
        raise UserError(f"the speed of {run.method} on {run.suite} is not known: run with --rates first, on idle cores")
    return pace.rounds_in(run.config(1), rate["speeds"], amount - rate["preparation"])


def compare(suite: str, runs: Sequence[Run], budget: Budget) -> str:
    """Runs what is missing, in this order; returns the table, and draws curves and samples."""
    file, (kind, amount) = RESULTS / f"{suite}.jsonl", budget
    label, found = f"{kind}={amount:g}", []
    for run in runs:
        rows = read(file)
        rounds = rounds_of(run, budget, rows)
        key = (label, identity(run.config(rounds)))
        row = next((row for row in rows if (row["budget"], row["identity"]) == key), None)
        if row is None:
            row = {"budget": label, **execute(run, rounds, max(1, rounds // SUITES[suite].evaluations))}
            add(file, row)
        row = {**timed(row, known(run, rows), run.config(1)), "trials": run.trials()}  # more may have been made since
        print(f"{run.method}, seed {run.seed}: {row['score']:.2%} in {row['seconds']:.0f} s", flush=True)
        found.append(row)
    title = f"{suite}, {amount:g} {kind} for each method"
    draw(found, RESULTS / f"{suite}-{kind}.png", title)
    first = [(run, run.config(row["rounds"])) for run, row in zip(runs, found, strict=True) if run.seed == runs[0].seed]
    shown = {run.method: (config, run_folder(run, config)) for run, config in first}
    samples.draw(shown, RESULTS / f"{suite}-{kind}-samples.png", f"{title}: generated images, seed {runs[0].seed}")
    return table(found)


def timed(row: dict[str, Any], rate: dict[str, Any] | None, settings: Config) -> dict[str, Any]:
    """A row with its seconds, and its curve over them: by the method's speed, else by the clock."""
    whole, before = row["wall_seconds"], 0.0
    if rate:
        before = rate["preparation"]
        whole = before + pace.needed(settings, rate["speeds"])(row["rounds"])
    curve = [[before + (whole - before) * done / row["rounds"], agreement] for done, agreement in row["curve"]]
    return {**row, "seconds": whole, "curve": curve}


def measure_rates(suite: str, names: Sequence[str], words: Sequence[str]) -> None:
    """The speed of each method, alone on this machine; UserError where it is not idle."""
    file = RESULTS / f"{suite}.jsonl"
    for name in names:
        run = Run(suite, name, 0, tuple(words))
        if known(run, read(file)):
            continue
        if pace.by_the_wall() and not torch.cuda.is_available() and (busy := psutil.cpu_percent(interval=2)) > IDLE:
            raise UserError(f"the machine is not idle ({busy:.0f} % of its cores are used): wait and give it again")
        config = run.config(1)
        speeds, preparation = pace.speeds(config, RATE_ROUNDS), pace.preparation(config)
        add(file, {"budget": "rate", "suite": suite, "method": config.method, "variant": config.variant,
                   "words": list(words), "speeds": speeds, "preparation": preparation, "identity": identity(config),
                   **machine()})  # fmt: skip
        each = " and ".join(f"{seconds:.3g}" for seconds in speeds)
        print(f"{name}: {each} s a round, {preparation:.3g} s before the first", flush=True)


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
    config = resolve.resolve(SUITES[suite].recipe, None, resolve.read_overrides(chosen))
    if not Path(str(config.teacher.checkpoint)).exists():
        command = [sys.executable, "-m", "harness", "teach", SUITES[suite].recipe, *chosen, "tracking.uri=none"]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(f"the teacher could not be taught, exit code {code}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What a command asks for; `path=value` words may stand anywhere, also after an option that takes several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--methods", nargs="+", default=DATA_FREE, metavar="METHOD[:VARIANT]")
    parser.add_argument("--seeds", nargs="+", type=int, default=None)
    parser.add_argument("--updates", type=int, default=None, help="student updates of each run, instead of the suite's")
    parser.add_argument("--seconds", type=float, default=None, help="equal wall time instead of equal updates")
    parser.add_argument("--rates", action="store_true", help="measure the methods' speeds on idle cores, and end")
    parser.add_argument("--tuned", action="store_true", help="with the settings in benchmarks/tuned/SUITE.yaml")
    parser.add_argument("words", nargs="*", metavar="path=value")
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    given = parser.parse_args([word for word in arguments if word not in words])
    given.words = words
    return given


def main() -> None:
    """The command."""
    given = parse(sys.argv[1:])
    seeds = SUITES[given.suite].seeds if given.seeds is None else given.seeds
    try:
        teach(given.suite, given.words)
        if given.rates:
            measure_rates(given.suite, given.methods, given.words)
        else:
            budget: Budget = ("updates", given.updates or SUITES[given.suite].updates)
            if given.seconds is not None:
                budget = ("seconds", given.seconds)
            # Seed by seed, so that any part of it is a comparison.
            pairs = [(seed, name) for seed in seeds for name in given.methods]
            runs = [Run(given.suite, name, seed, tuple(given.words), given.tuned) for seed, name in pairs]
            print(compare(given.suite, runs, budget))
    except UserError as error:
        sys.exit(f"benchmarks.methods: {error}")


if __name__ == "__main__":
    main()
