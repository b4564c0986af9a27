"""The `ddad` command. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from harness.commands.arguments import (
    DISTILL_EXAMPLES,
    AsJson,
    ConfigFile,
    Output,
    Run,
    Words,
    resolved,
    show_version,
    to_colour,
)
from harness.commands.evaluate_options import evaluate
from harness.commands.session import (
    Signals,
    conclude,
    follow,
    run_command,
    say,
    set_verbosity,
    show,
    tell,
    verbosity,
)
from harness.commands.sweep import sweep

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="The log of ddad and its libraries, on standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors and the result alone.")]


@app.callback()
def ddad(
    verbose: Verbose = False,
    quiet: Quiet = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Versions of ddad and torch.")
    ] = False,
) -> None:
    """Data-free distillation: a trained network in, a small one out, without the data it was trained on."""
    set_verbosity(verbose, quiet)


@app.command(epilog=DISTILL_EXAMPLES)
def distill(
    words: Words = None,
    config: ConfigFile = None,
    output: Output = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and estimates.")] = False,
) -> None:
    """Distil a student from a teacher without data; the same command again resumes."""
    configuration = resolved(words, config)
    if dry_run:
        from harness.commands.estimate import estimate

        estimate(configuration, output, print)
        return
    from harness.training.distill import rounds

    with Signals() as signals:
        last = follow(rounds(configuration, output, signals.reason, say))
    conclude(last)


@app.command()
def launch(
    nproc: Annotated[int, typer.Option(help="Number of processes, one for each GPU where there are GPUs.")],
    words: Words = None,
    restarts: Annotated[int, typer.Option(help="How often to start again after a process was lost.")] = 0,
    config: ConfigFile = None,
    output: Output = None,
) -> None:
    """Distil on several processes of this machine; the same command again resumes."""
    from harness.distributed import launcher

    launcher.prepare(nproc, restarts)
    arguments = [*verbosity(), "distill", *(words or [])]
    if resolved(words, config).distributed.world_size is None:
        arguments.append(f"distributed.world_size={nproc}")
    for option, path in (("--config", config), ("--output", output)):
        arguments += [option, str(path)] if path else []
    raise typer.Exit(launcher.launch(nproc, restarts, arguments, say))


@app.command()
def teach(words: Words = None, config: ConfigFile = None, output: Output = None) -> None:
    """Train a recipe's teacher on real data, into the file the recipe distils from."""
    configuration = resolved(words, config)
    from harness.training.distill import teach as lessons

    with Signals() as signals:
        last = follow(lessons(configuration, output, signals.reason, say))
    if last is None:
        tell(f"{configuration.teacher.checkpoint} is there already: delete it to teach it again")
        return
    conclude(last)
    tell(f"the teacher is {configuration.teacher.checkpoint}")


app.command()(evaluate)


@app.command()
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    background: Annotated[
        str | None, typer.Option(help="Colour behind transparent pixels: 255,255,255; default the run's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a run's student says of images."""
    from harness.commands.predict import predict as answers

    found = answers(run, images, background=to_colour(background))
    lines = [f"{answer['image']}: {answer['class']} ({answer['probability']:.1%})" for answer in found]
    show({"predictions": found}, as_json, lambda _: lines)


@app.command()
def export(
    run: Run,
    kind: Annotated[str, typer.Option("--format", help="safetensors, onnx or torch.export.")] = "safetensors",
    output: Annotated[Path | None, typer.Option(help="The file; default in the run folder.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="With --format onnx: in 8 bits, calibrated without data.")
    ] = False,
    hub: Annotated[str | None, typer.Option(help="Upload the export folder to this repository: OWNER/NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --hub: a new repository is public.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the student for use elsewhere, checked against the original, what it takes, and a model card."""
    from harness.commands import card, footprint, push
    from harness.commands.export import export as write

    push.check_options(hub, public, output)
    found = write(run, kind, output, int8, say)
    folder = card.write(run, say) if output is None else None
    if hub is not None:
        found["hub"] = push.push(folder, hub, public)
        say(f"uploaded: {found['hub']}")
    if as_json:
        show(found, True, lambda _: [])
    else:
        footprint.show(found)


@app.command()
def generate(
    run: Run,
    count: Annotated[int, typer.Option(help="How many images.")],
    output: Annotated[Path, typer.Option(help="A new folder for them.")],
    kind: Annotated[
        str, typer.Option("--format", help="images: PNG files as a data set; or npz, safetensors: arrays with logits.")
    ] = "images",
    seed: Annotated[int | None, typer.Option(help="Another seed gives other images; default the run's.")] = None,
    reveal: Annotated[bool, typer.Option("--reveal", help="Also where the run has pictures=false.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write images of a run's generator, with the teacher's answers."""
    from harness.commands.generate import generate as write

    found = write(run, count, output, kind, seed, reveal)
    show(found, as_json, lambda _: [f"{count} images in {output}"])


@app.command()
def compare(
    sources: Annotated[list[str], typer.Argument(help="Run folders, sweep folders, or mlflow:EXPERIMENT.")],
    uri: Annotated[str, typer.Option(help="The MLflow tracking URI.")] = "sqlite:///mlflow.db",
    kind: Annotated[
        str | None, typer.Option("--format", help="terminal, markdown or csv; default as --output is named.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file for the table, such as table.md.")] = None,
    figure: Annotated[Path | None, typer.Option(help="A file for a figure, such as figure.png.")] = None,
) -> None:
    """Show what runs differ in and what came of it: a table over seeds, a figure."""
    from harness import files
    from harness.compare import groups as comparing
    from harness.compare import plots, runs, tables

    form = tables.formatter(kind, output)
    if figure:
        plots.check_suffix(figure)
    found = comparing.compare(*runs.read(sources, uri, say), say)
    if figure:
        plots.draw(found, figure)
        say(f"the figure is {figure}")
    if output:
        files.write(output, form(found) + "\n")
        say(f"the table is {output}")
    else:
        print(form(found))


app.command()(sweep)


@app.command()
def profile(
    words: Words = None,
    config: ConfigFile = None,
    output: Annotated[Path | None, typer.Option(help="The folder; default profiles/<recipe>-<hash>.")] = None,
    find_batch: Annotated[bool, typer.Option("--find-batch", help="The largest batch that fits, too.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="A round as torch's profiler sees it, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure where the time of a round goes, and how near it is to this machine's limit."""
    configuration = resolved(words, config)
    from harness.commands.profile import report

    found = report.run(configuration, output, find_batch, trace, say if as_json else tell)
    if as_json:
        show(found, True, lambda _: [])


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, to see what it sets; default the list of all.")] = None,
) -> None:
    """List the recipes, or print what one sets, as a file for --config."""
    from harness.commands.recipes import listing, page

    print(page(name) if name else listing())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what works here: versions, devices, process groups, DeepSpeed, the MLflow store."""
    from harness.commands.doctor import examine

    show(examine(), as_json, lambda found: [f"{key:14}{value}" for key, value in found.items()])


@app.command()
def ui(
    uri: Annotated[str, typer.Option(help="The MLflow tracking URI.")] = "sqlite:///mlflow.db",
    host: Annotated[str, typer.Option(help="The address to listen on; whoever reaches it reads all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.")] = 5000,
) -> None:
    """Open the MLflow page, on loopback."""
    from harness import tracking

    tracking.ui(uri, host, port)


def main() -> NoReturn:
    """Runs the command; a mistake is one line on standard error and exit code 2, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be bytes that are no text
    run_command(lambda: app(sys.argv[1:] or ["--help"], prog_name="ddad", standalone_mode=False))
