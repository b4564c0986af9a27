"""`ddad sweep`: its options. What it does is in `tune`, which is found by name: harness does not import it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.arguments import AsJson, ConfigFile, Words, read
from harness.commands.session import say, show


def sweep(
    words: Words = None,
    config: ConfigFile = None,
    space: Annotated[
        str, typer.Option(help="loss_weights, turns, everything, or a YAML file of distributions.")
    ] = "loss_weights",
    trials: Annotated[int | None, typer.Option(help="Trials; default 16, or all points of a grid.")] = None,
    output: Annotated[Path | None, typer.Option(help="The sweep's folder; default sweeps/<recipe>-<hash>.")] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="agreement (default), kl, confidence: data-free; accuracy, miou: an oracle, on real data."),
    ] = None,
    searcher: Annotated[str | None, typer.Option(help="optuna (default), random or grid.")] = None,
    scheduler: Annotated[str, typer.Option(help="asha, none, or pbt over weights.")] = "asha",
    total_rounds: Annotated[int | None, typer.Option(help="Rounds of all trials together, then no more.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of this invocation, then no more.")] = None,
    cpus: Annotated[float, typer.Option(help="CPUs of each process of a trial; may be a fraction.")] = 1.0,
    gpus: Annotated[float, typer.Option(help="GPUs of each process of a trial; may be a fraction.")] = 0.0,
    parallel: Annotated[int | None, typer.Option(help="Trials at a time; default as many as fit.")] = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster that runs; default one of this machine's.")] = None,
    probe: Annotated[
        Path | None, typer.Option(help="Another sweep's folder, whose probe judges here too; default its own.")
    ] = None,
    probe_images: Annotated[
        str | None,
        typer.Option(help="What a new probe is made of: generator (default) or methods, alone or +views or +mixtures."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep that was ended; finished stays.")] = False,
    retrain: Annotated[
        str | None, typer.Option(help="Seeds, such as 0-4 or 0,7: repeat the best and the defaults over them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search a recipe's settings with Ray Tune, without data; ends with the best configuration in best.yaml."""
    recipe, file, overrides = read(words, config)
    plans = importlib.import_module("tune.plan")
    plan = plans.make(
        (recipe, file, overrides), output, space=space, trials=trials, objective=objective, searcher=searcher,
        scheduler=scheduler, total_rounds=total_rounds, minutes=minutes, cpus=cpus, gpus=gpus, parallel=parallel,
        address=address, probe=probe, probe_images=probe_images, resume=resume,
    )  # fmt: skip
    seeds = plans.seeds(retrain)
    importlib.import_module("tune.checks").check(plan)
    try:
        found = importlib.import_module("tune.sweep").sweep(plan, resume, seeds, say)
    except KeyboardInterrupt:
        say(f"stopped: the same command with --resume goes on in {plan.folder}")
        raise typer.Exit(130) from None
    show(found, as_json, lambda _: [(plan.folder / "report.md").read_text(), f"best: {plan.folder / 'best.yaml'}"])
