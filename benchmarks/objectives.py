"""Which data-free objective orders students as the test set does: `python -m benchmarks.objectives SUITE`.

    DDAD_DATA=/path/to/data OMP_NUM_THREADS=1 python -m benchmarks.objectives digits
    OMP_NUM_THREADS=1 python -m benchmarks.objectives digits fashion cifar10 camvid

Runs `--runs` configurations of each suite, in turn of each method, with settings drawn (seeded) from
benchmarks/spaces/. Each has as many rounds as its method does in the suite's seconds of processor time. Every final
student is evaluated by every objective of tune/objectives.py on every kind of probe of tune/probe.py, and on the test
set, which is read for this only and chooses nothing in a run. Rows are added to benchmarks/results/
objectives-SUITE.jsonl as runs end. What is there is not run again, and a run that was ended continues from its folder
below runs/objectives/. Then rank correlations over all suites are printed and written to
benchmarks/RESULTS-objectives.md (`--table`: only this).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import correlation, methods, pace, results
from benchmarks.methods import Run, Suite
from harness import files
from harness import task as tasks
from harness.config import Config, identity
from harness.errors import Diverged, UserError
from harness.run import folder
from harness.training import distill
from tune import generated, probe, spaces, trial
from tune.configs import student_updates
from tune.spaces import Distribution

METHODS = ("ddad", "ddad:swift", "dfad", "dafl", "zskt", "dfq", "cmi", "fast")
"""The methods of the runs on classification, in turn; `zskt`, `cmi` and `fast` do not know segmentation."""

ON_MAPS = ("ddad", "ddad:swift", "dfad", "dafl", "dfq")

LOWER = 10.0
"""How much lower learning rates are drawn for a student that starts from its teacher's weights: those of a student that
starts fresh undo them."""

NUM_RUNS = 24


@dataclasses.dataclass(frozen=True)
class Pair:
    """A suite of runs."""

    suite: Suite
    seconds: float
    """Of processor time of one thread, for each run."""
    names: tuple[str, ...] = METHODS
    inherits: bool = False
    """Whether the student starts from its teacher's weights."""


PAIRS: dict[str, Pair] = {
    "digits": Pair(methods.SUITES["digits"], 15.0),
    "fashion": Pair(Suite("classification", (0,), 0, methods.FASHION), 45.0),
    "cifar10": Pair(results.RESNET20_HALF, 40.0, inherits=True),
    "camvid": Pair(results.PAIRS["camvid-resnet18-half"], 25.0, ON_MAPS, inherits=True),
}


def rows(suite: str) -> list[dict[str, Any]]:
    """All rows of a suite's results."""
    return methods.read(_file(suite))


def _file(suite: str) -> Path:
    return methods.RESULTS / f"objectives-{suite}.jsonl"


def drawn(one: Distribution, source: random.Random) -> Any:
    """A value from a distribution."""
    if one.kind == "choice":
        return source.choice(one.values)
    low, high = (math.log(value) if one.kind.startswith("log_") else value for value in one.values)
    value = source.uniform(low, high)
    value = math.exp(value) if one.kind.startswith("log_") else value
    return round(value) if one.kind.endswith("integer") else float(f"{value:.4g}")


def sample(suite: str, number: int) -> tuple[str, dict[str, Any]]:
    """The method of a suite's configuration of this number, as NAME or NAME:VARIANT, and its drawn settings."""
    pair, source = PAIRS[suite], random.Random(number)
    method = pair.names[number % len(pair.names)]
    space = spaces.find(str(Path(__file__).with_name("spaces") / f"{method.partition(':')[0]}.yaml"))
    values = {path: drawn(one, source) for path, one in space.items()}
    if pair.inherits:
        values["student.lr"] = float(f"{values['student.lr'] / LOWER:.4g}")
    return method, values


def configuration(suite: str, method: str, values: dict[str, Any], rounds: int) -> Config:
    """The configuration of a run."""
    words = tuple(f"{path}={value}" for path, value in values.items())
    return dataclasses.replace(Run(suite, method, 0, words).config(rounds), pictures=False)


def rounds_of(suite: str, method: str, seconds: float) -> int:
    """Rounds of a method in the seconds of a run, by its speed with default settings, which is measured once."""
    settings = configuration(suite, method, {}, 1)
    found = next((row for row in rows(suite) if row["kind"] == "rate" and row["method"] == method), None)
    if found is None:
        speeds = pace.speeds(settings, methods.RATE_ROUNDS)
        found = {"kind": "rate", "method": method, "speeds": speeds, **methods.machine()}
        methods.add(_file(suite), found)
    return pace.rounds_in(settings, found["speeds"], seconds)


def probes(suite: str, rounds: int) -> dict[str, Path]:
    """{kind: file} of the probes, made of the runs of each method with its default settings; existing ones are kept."""
    top = Path("runs") / "objectives" / suite
    sources = []
    for method in probe.METHODS_OF_PROBE:
        config = configuration(suite, method, {}, rounds)
        every = probe.interval(rounds)
        config = dataclasses.replace(
            config, log_every=every, checkpoint=dataclasses.replace(config.checkpoint, every=every)
        )
        own = "" if method == probe.METHODS_OF_PROBE[0] else method
        sources.append(probe.Source(config, top / f"{method}-{identity(config)}", own))
    folders = {kind: top / f"probes-{identity(sources[0].config)}" / kind for kind in probe.KINDS}
    plain = {probe.GENERATOR: sources[:1], probe.METHODS_PREFIX: sources}
    if not all((path / "probe.safetensors").exists() for path in folders.values()):
        for source in sources:
            for _ in itertools.chain([None], distill.rounds(source.config, source.run)):  # None: what a kill left
                for kind, used in plain.items():
                    probe.collect(used, folders[kind], kind)
        for kind in probe.KINDS:
            of = kind.partition("+")[0]
            if not (folders[kind] / "probe.safetensors").exists():
                images = probe.load(folders[of] / "probe.safetensors").images
                probe.write(plain[of], images, folders[kind], kind)
    return {kind: path / "probe.safetensors" for kind, path in folders.items()}


def execute(suite: str, number: int, seconds: float, files_of: dict[str, Path]) -> dict[str, Any]:
    """The row of a configuration: its score on the test set and each objective on each probe; or why it failed."""
    method, values = sample(suite, number)
    config = configuration(suite, method, values, rounds_of(suite, method, seconds))
    path = Path("runs") / "objectives" / suite / f"{number:02d}-{identity(config)}"
    row = {
        "kind": "run", "suite": suite, "number": number, "seconds": seconds, "method": method, "sample": values,
        "rounds": config.rounds, "student_updates": student_updates(config), "identity": identity(config),
        **methods.machine(),
    }  # fmt: skip
    try:
        for _ in distill.rounds(config, path):
            pass
    except Diverged as error:
        return {**row, "score": None, "error": str(error)}
    result, student = folder.result(path), trial.student(config, path)
    assert result is not None
    metric = tasks.load(config.task).primary_metric
    found = {kind: probe.load(file) for kind, file in files_of.items()}
    objectives = {kind: probe.scores(one, student, config.batch_size) for kind, one in found.items()}
    hashes = {kind: one.sha256 for kind, one in found.items()}
    for checkpoint in (path / "checkpoints").glob("*.safetensors"):
        if checkpoint != generated.last_checkpoint(path):
            checkpoint.unlink()
    return {**row, "score": result["student"][metric], "teacher": result["teacher"][metric],
            "agreement": result["agreement"], "objectives": objectives, "probes": hashes}  # fmt: skip


def measure(suite: str, num_runs: int, seconds: float) -> None:
    """Runs what is missing until so many runs of a suite have a score; those that diverge are left out."""
    methods.SUITES[suite] = PAIRS[suite].suite
    methods.teach(suite, [])
    files_of = probes(suite, rounds_of(suite, probe.METHODS_OF_PROBE[0], seconds))
    for number in range(2 * num_runs):
        done = [row for row in rows(suite) if row["kind"] == "run" and row["seconds"] == seconds]
        if sum(row["score"] is not None for row in done) >= num_runs:
            return
        if number not in {row["number"] for row in done}:
            row = execute(suite, number, seconds, files_of)
            methods.add(_file(suite), row)
            text = "failed" if row["score"] is None else f"{row['score']:.2%}"
            print(f"{suite}, run {number}, {row['method']}: {text}, {row['rounds']} rounds", flush=True)


def table() -> str:
    """The results of all suites that have been measured at their own number of seconds."""
    found = {}
    for suite, pair in PAIRS.items():
        runs = [row for row in rows(suite) if row["kind"] == "run" and row["seconds"] == pair.seconds]
        if sum(row["score"] is not None for row in runs) >= correlation.MIN_RUNS:
            found[suite] = runs
    return correlation.page(found)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(PAIRS)}")
    parser.add_argument("--runs", type=int, default=NUM_RUNS)
    parser.add_argument("--seconds", type=float, default=None, help="of each run, instead of the suite's")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    given = parser.parse_args(arguments)
    if unknown := [suite for suite in given.suites if suite not in PAIRS]:
        parser.error(f"no such suite as {unknown[0]!r}: expected some of {', '.join(PAIRS)}")
    if not given.suites and not given.table:
        parser.error(f"name a suite: {', '.join(PAIRS)}; or give --table")
    return given


def main() -> None:
    """The command."""
    given = parse(sys.argv[1:])
    try:
        for suite in () if given.table else given.suites:
            measure(suite, given.runs, given.seconds or PAIRS[suite].seconds)
        text = table()
        files.write(Path(__file__).with_name("RESULTS-objectives.md"), text)
        print(text)
    except UserError as error:
        sys.exit(f"benchmarks.objectives: {error}")


if __name__ == "__main__":
    main()
