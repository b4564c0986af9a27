"""The model card of an exported student: README.md, and student.json without anything of this machine in it."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness import files
from harness import task as tasks
from harness.commands import loading
from harness.config import MEMORY, PRETRAINED, UNTRAINED, Config, is_bookkeeping
from harness.networks import hub, own_file
from harness.run import folder as run_folder
from harness.run.student import DESCRIPTION, WEIGHTS

CARD = "README.md"
"""The card's name, which hubs show."""

SIGNED = "<!-- Written by `ddad export`. SHA-256 of what is above: "
"""How the last line begins; one whose hash is another was edited."""

METRICS = {"accuracy": "accuracy", "miou": "mean_iou"}
"""Metrics of the tasks under the names that hubs know."""

MOST_CLASSES = 50
"""Names of classes in a card; student.json has all."""

LICENCE = "# license: fill in its name, such as mit; the licence of the teacher's weights may bind the student's too"


def write(run: Path, say: Callable[[str], None]) -> Path | None:
    """Completes the export folder of a run, so that it can be put on a model hub as it is, and returns it.

    README.md describes the student, student.json rebuilds it, and no file of the folder names a folder of this machine
    or a password. A README.md that was edited is kept, which `say` is told. None where the run has no result.
    """
    result = run_folder.result(run)
    if result is None:
        return None
    target = run / "export"
    record = json.loads((run / DESCRIPTION).read_text())
    files.write(target / DESCRIPTION, json.dumps(_portable(record), indent=1) + "\n")
    for path in target.glob("student*.json"):
        content = path.read_text()
        if (clean := json.dumps(public(json.loads(content)), indent=1) + "\n") != content:
            files.write(path, clean)
    text = _signed(_text(run, target, result, public(_portable(record))))
    card = target / CARD
    if card.exists() and _edited(card.read_text()):
        say(f"{card} was edited and is kept: delete it to have it written anew")
    elif not card.exists() or card.read_text() != text:
        files.write(card, text)
    return target


def public(value: Any) -> Any:
    """Plain data with every absolute path in its strings cut to its last part, and without passwords in URLs."""
    if isinstance(value, Mapping):  # a class may have any name
        return {key: each if key == "class_names" else public(each) for key, each in value.items()}
    if isinstance(value, list):
        return [public(each) for each in value]
    if not isinstance(value, str):
        return value
    if re.match(r"~?/", value):
        return Path(value).name
    value = re.sub(r"(\w://)[^/\s@]*@", r"\1", value)
    return re.sub(r"(?<![\w.:/~)-])~?/(?:[^\s/,;'\"\])}]+/)*([^\s/,;'\"\])}]+)/?", r"\1", value)


def _portable(record: Mapping[str, Any]) -> dict[str, Any]:
    """student.json with the user's own network file as one beside it, wherever it was."""
    found = {**record, "network": _name(record["network"])}
    if record.get("pruned"):
        found["pruned"] = {**record["pruned"], "network": _name(record["pruned"]["network"])}
    if record["source"]:
        found["source"] = {**record["source"], "path": Path(record["source"]["path"]).name}
    return found


def _name(network: str) -> str:
    source = own_file.source_file(network)
    return f"{source.name}:{network.rpartition(':')[2]}" if source else network


def _edited(text: str) -> bool:
    """Whether a card is not, to the byte, what this program wrote."""
    body, found, _ = text.rpartition(SIGNED)
    return not found or _signed(body.rstrip("\n")) != text


def _signed(body: str) -> str:
    return f"{body}\n\n{SIGNED}{hashlib.sha256(body.encode()).hexdigest()} -->\n"


def _text(run: Path, target: Path, result: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    config, records = run_folder.read_config(run)
    teacher = records.get("teacher.checkpoint", {})
    sections = [
        _front(config, result, teacher),
        f"# {record['network']}, distilled by ddad",
        _about(config, result, record),
        "## How it was made\n\n" + "\n".join(_making(run, config, result, teacher)),
        "## Scores\n\n" + "\n".join(_scores(config, result)),
        "## Input\n\n" + _input(record["preprocessing"]),
        "## Classes\n\n" + _classes(record["class_names"], record["classes"]),
        "## Files\n\n" + "\n\n".join(_files(target, record)),
        "## Limits\n\n" + "\n".join(_limits(config, result)),
    ]
    return "\n\n".join(sections)


def _front(config: Config, result: Mapping[str, Any], teacher: Mapping[str, Any]) -> str:
    """The metadata that a hub reads, as YAML between two lines."""
    metrics = [METRICS[name] for name in METRICS if result["student"].get(name) is not None]
    maps = tasks.is_dense(config.task)
    front = {
        "library_name": "pytorch",
        "pipeline_tag": "image-segmentation" if maps else "image-classification",
        "tags": ["ddad", "knowledge-distillation", *(["data-free"] if result["data_free"] else [])],
        **({"metrics": metrics} if metrics else {}),
        **({"base_model": teacher["repository"]} if "repository" in teacher else {}),
    }
    return f"---\n{LICENCE}\n{yaml.safe_dump(front, sort_keys=False)}---"


def _about(config: Config, result: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    cost = result["student"]
    size = f"{cost['parameters']:,} parameters, {cost['macs'] / 1e6:,.4g} million multiply-adds an image"
    kind = "pruned from its teacher" if record.get("pruned") else f"the network `{record['network']}`"
    source = "without any of its teacher's data" if result["data_free"] else f"on the images of {config.data.name}"
    return f"A student for {config.task}, {kind}: {size}. It was trained {source}."


def _making(run: Path, config: Config, result: Mapping[str, Any], teacher: Mapping[str, Any]) -> Iterator[str]:
    if result["teacher"]:
        checkpoint = str(config.teacher.checkpoint)
        weights = f"weights `{checkpoint if checkpoint.startswith(hub.PREFIX) else Path(checkpoint).name}`"
        if checkpoint == UNTRAINED:
            weights = "random weights"
        elif checkpoint == MEMORY:
            weights = "weights that were given from Python"
        elif checkpoint == PRETRAINED:
            weights = "the weights its library publishes"
        commit = f" at commit `{teacher['revision']}`" if "repository" in teacher else ""
        digest = f", SHA-256 `{result['teacher']['sha256']}`" if result["teacher"]["sha256"] else ""
        yield f"- Teacher: `{_name(config.teacher.network)}`, {weights}{commit}{digest}"
    yield f"- Method: `{config.method}`, variant `{config.variant}`, recipe `{config.recipe}`, seed {config.seed}"
    updates = f"{result['student_updates']:,} updates of the student"
    yield f"- {config.rounds:,} rounds, {updates}, batch size {config.batch_size}"
    environment = run / "environment.json"  # which is no part of what a student needs
    command = json.loads(environment.read_text())["command"] if environment.exists() else []
    if words := _command(command):
        yield f"- Command: `{shlex.join(words)}`"


def _command(argv: Sequence[str]) -> list[str]:
    """A command of ddad without what does not change the result; nothing for any other program."""
    if not argv:
        return []
    program = Path(argv[0])
    if program.name != "ddad" and not (program.name == "__main__.py" and program.parent.name == "harness"):
        return []
    words, kept = iter(argv[1:]), ["ddad"]
    for word in words:
        if word == "--output":
            next(words, None)
            continue
        path, equals, value = word.partition("=")
        if word.startswith("--output=") or (equals and is_bookkeeping(path)) or path == "data.root":
            continue
        kept.append(f"{path}={public(value)}" if equals else public(word))
    return kept


def _scores(config: Config, result: Mapping[str, Any]) -> Iterator[str]:
    names = [name for name in tasks.load(config.task).reported_metrics if result["student"].get(name) is not None]
    if names:
        sizes = dict.fromkeys("{}x{}".format(*each["network"]) for each in result["student"].get("sizes", []))
        at = f" (given to the student at {', '.join(list(sizes)[:3])})" if sizes else ""
        yield f"On the test images of {config.data.name}{at}:\n\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}"
        for role in ("teacher", "student"):
            scores = result[role] or {}
            if any(scores.get(name) is not None for name in names):
                figures = [f"{scores[name]:.4f}" if scores.get(name) is not None else "" for name in names]
                yield f"| {role} | {' | '.join(figures)} |"
        yield ""
    else:
        yield "It was not scored on data: there was none.\n"
    if result["agreement"] is not None:
        on = "the test images" if result["agreement_on"] == "test" else "generated images, which are not real ones"
        on = f"the pixels of {on}" if tasks.is_dense(config.task) else on
        yield f"Teacher and student agree on {result['agreement']:.1%} of {on}."


def _input(spec: Mapping[str, Any]) -> str:
    mean, std = ([round(value, 6) for value in spec[key]] for key in ("mean", "std"))
    least = min((0 - centre) / scale for centre, scale in zip(mean, std, strict=True))
    most = max((1 - centre) / scale for centre, scale in zip(mean, std, strict=True))
    return (
        f"float32 [B, {len(mean)}, {spec['height']}, {spec['width']}], channels {spec['channels']}: pixels in 0..1, "
        f"minus mean {mean}, divided by std {std}, so that values are in {least:.4g}..{most:.4g}. The output is "
        "logits, not probabilities."
    )


def _classes(named: Sequence[str], count: int) -> str:
    names = [*named, *["void, none of the others"] * (count - len(named))]
    shown = ", ".join(f"{index}: {name}" for index, name in enumerate(names[:MOST_CLASSES]))
    return shown + (f", ... {len(names)} in all, see student.json" if len(names) > MOST_CLASSES else "")


def _files(target: Path, record: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted(target.iterdir()):
        if path.name.startswith("."):  # what an export that was interrupted left
            continue
        if snippet := loading.snippet(path.name, record):
            about = target / f"{path.name}.json"
            sizes = json.loads(about.read_text()).get("input", {}).get("sizes") if about.exists() else None
            takes = f"; takes {sizes}" if sizes else ""
            yield f"`{path.name}`, {path.stat().st_size / 1e3:,.0f} KB{takes}:\n\n{snippet}"
    if not (target / WEIGHTS).exists():
        return
    if record["source"]:
        source = record["source"]["path"]
        yield f"The network is defined in `{source}`, which is not among these files: put it beside them."


def _limits(config: Config, result: Mapping[str, Any]) -> Iterator[str]:
    if result["teacher"] and result["teacher"].get("untrained"):
        yield "- The teacher had random weights: this student shows that the machinery works, and nothing else."
    if result["data_free"]:
        yield "- Its training images were generated from the teacher. What the teacher gets wrong, it repeats."
    if result["student"].get(tasks.load(config.task).primary_metric) is None:
        yield "- Agreement on generated images does not say how good it is on real ones: score it before it is used."
    yield "- It knows the classes above and no others; what is none of them gets one of them."
