"""A profile as a table, a picture of one round, and files."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import files
from harness.commands.profile import capacity, measure
from harness.commands.profile.measure import Profile
from harness.compare.markdown import pipe_table
from harness.config import Config, identity
from harness.errors import UserError
from harness.run import palette

STEPS = {"answer": "forward, no graph", "forward": "forward", "backward": "backward", "update": "update"}
"""What the steps are called."""

COLOURS = {
    "answer": palette.SKY, "forward": palette.BLUE, "backward": palette.VERMILION, "update": palette.GREEN,
    "rest": palette.GREY,
}  # fmt: skip
"""The colour of each step."""

NUM_TEXT = 3
"""The columns of the table that hold text: the first ones."""

OWN = ("profile.json", "profile.md", "timeline.png", "trace.json")
"""The files of a profile's folder."""


def run(
    config: Config, output: Path | None, find_batch: bool, traced: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Profiles a run into a folder, profiles/<recipe>-<hash> unless `output` names one.

    Returns the content of profile.json. UserError where the folder holds anything else, or no round can be played.
    """
    folder = output or Path("profiles") / f"{config.recipe}-{identity(config)}"
    _check_folder(folder)
    if config.method == "supervised":
        raise UserError("method=supervised: a profile is of a distillation; name another method")
    built = measure.machine(config, say)
    found = measure.measure(built)
    if traced:
        measure.trace(built, folder / "trace.json")
    del built
    largest = capacity.largest_batch(config, say) if find_batch else None
    content = record(found) | ({"largest_batch": largest[0], "largest_batch_is": largest[1]} if largest else {})
    files.write(folder / "profile.json", json.dumps(content, indent=1) + "\n")
    lines = summary(found) + ([f"largest batch that fits: {largest[0]} ({largest[1]})"] if largest else [])
    files.write(folder / "profile.md", "\n".join([*markdown(found), "", *lines]) + "\n")
    drawn = draw(found, folder / "timeline.png")
    say(terminal(found))
    for line in lines:
        say(line)
    names = [name for name in OWN if (folder / name).exists() and (drawn or name != "timeline.png")]
    say(f"written to {folder}: {', '.join(names)}")
    return content


def record(found: Profile) -> dict[str, Any]:
    """The whole profile as plain data."""
    content = dataclasses.asdict(found)
    content["config"] = {"recipe": found.config.recipe, "identity": identity(found.config)}
    return content | {"flop": found.flop, "bytes": found.moved}


HEADER = [
    "network",
    "turn",
    "part",
    "a round",
    "GFLOP",
    "MiB",
    "ms",
    "of the round",
    "of peak FLOP/s",
    "of peak bytes/s",
]


def rows(found: Profile) -> list[list[str]]:
    """A row for each part, then what is left and the whole round."""
    cells = []
    for part in found.parts:
        seconds = part.times * part.seconds
        rate = (part.flop / part.seconds, part.bytes / part.seconds) if part.seconds else (0.0, 0.0)
        cells.append([
            part.network, "own" if part.learns else "others'", STEPS[part.step], str(part.times),
            f"{part.flop / 1e9:.3g}", f"{part.bytes / 2**20:,.1f}", f"{1e3 * part.seconds:.3g}",
            f"{seconds / found.round_seconds:.1%}", f"{rate[0] / found.peak_flops:.0%}",
            f"{rate[1] / found.peak_bytes:.0%}",
        ])  # fmt: skip
    parts = sum(part.times * part.seconds for part in found.parts)
    rest = max(0.0, found.round_seconds - parts)
    cells.append(["rest", "", "losses, draws", "", "", "", f"{1e3 * rest:.3g}", f"{rest / found.round_seconds:.1%}",
                  "", ""])  # fmt: skip
    return [*cells, _whole(found)]


def _whole(found: Profile) -> list[str]:
    shares = found.flop / found.round_seconds / found.peak_flops, found.moved / found.round_seconds / found.peak_bytes
    return ["round", "", "", "1", f"{found.flop / 1e9:.3g}", f"{found.moved / 2**20:,.1f}",
            f"{1e3 * found.round_seconds:.3g}", "100.0%", *(f"{share:.0%}" for share in shares)]  # fmt: skip


def terminal(found: Profile) -> str:
    """The table in box characters."""
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(name, justify="left" if i < NUM_TEXT else "right") for i, name in enumerate(HEADER)))
    for cells in rows(found):
        table.add_row(*cells)
    page = io.StringIO()
    Console(file=page, width=160, markup=False, highlight=False).print(table)
    return page.getvalue().rstrip()


def markdown(found: Profile) -> list[str]:
    """The same as markdown."""
    return pipe_table(HEADER, rows(found), NUM_TEXT)


def summary(found: Profile) -> list[str]:
    """What the table describes: run, machine, peak memory."""
    config = found.config
    peaks = (
        f"machine's peaks: {found.peak_flops / 1e9:,.4g} GFLOP/s in a matrix product, "
        f"{found.peak_bytes / 1e9:,.3g} GB/s in a copy; bytes are those of unfused operations"
    )
    return [
        f"{config.recipe}, method={config.method}, batch_size={config.batch_size}, {config.precision}, {found.device}",
        peaks,
        f"peak memory: {found.memory / 2**20:,.0f} MiB",
    ]


def draw(found: Profile, path: Path) -> bool:
    """One round along the time axis, a lane for each network; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ModuleNotFoundError:
        return False
    known = {(part.network, part.learns, part.step): part for part in found.parts}
    lanes = [name for name in ("generator", "teacher", "student") if any(part.network == name for part in found.parts)]
    figure = Figure(figsize=(11, 1.6 + 0.5 * (len(lanes) + 1)), dpi=120, layout="constrained")
    axes = figure.subplots()
    now = 0.0
    for turn in found.turns:
        for role in turn:
            width = 1e3 * known[role].seconds
            axes.barh(lanes.index(role[0]), width, left=now, color=COLOURS[role[2]], edgecolor="white", lw=0.5)
            now += width
        axes.axvline(now, color="0.6", lw=0.6)
    if (rest := 1e3 * found.round_seconds - now) > 0:
        axes.barh(len(lanes), rest, left=now, color=COLOURS["rest"])
    axes.set_yticks(range(len(lanes) + 1), [*lanes, "rest"])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("ms; a line ends a turn; parts measured alone, the rest is what the whole round takes beyond them")
    axes.spines[["top", "right"]].set_visible(False)
    share = found.flop / found.round_seconds / found.peak_flops
    axes.set_title(
        f"{found.config.recipe}, {found.config.method}: {1e3 * found.round_seconds:,.4g} ms a round, "
        f"{found.flop / 1e9:,.3g} GFLOP, {share:.0%} of the machine's matrix product", fontsize=10
    )  # fmt: skip
    names = {**STEPS, "rest": "losses, draws"}
    handles = [Patch(color=COLOURS[key], label=name) for key, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return True


def _check_folder(folder: Path) -> None:
    """Raises UserError if the profile could not be written, before anything is measured."""
    try:
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN) if folder.exists() else []
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be a folder for a profile: {error.strerror}") from None
    if foreign:
        raise UserError(f"{folder} holds something else ({foreign[0]}): give another --output")
