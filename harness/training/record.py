"""What a run writes while it runs: metrics, pictures, alarms, and their copy in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness import config as config_module
from harness import task as tasks
from harness import tracking
from harness.algorithm.turns import Terms
from harness.config import Config, sides
from harness.methods import METHODS
from harness.networks import preprocessing
from harness.networks.layers import evaluating
from harness.networks.start import Start
from harness.run import folder, pictures
from harness.run.data_set import digest
from harness.run.metrics import Log, read
from harness.training.data import data_root, spread
from harness.training.evaluate import Fitted
from harness.training.machine import Networks

NUM_SAMPLES = 64
"""Images in a sample grid."""

NUM_SCORED = 8
"""Test images in the picture that compares the networks' answers with the labels."""

COLLAPSED_ROWS = 5
"""Reports in a row that must look collapsed before the alarm: a single batch proves nothing."""

PREFIX = "turns/"
"""What the names of a round's values in a checkpoint begin with."""

MIN_ENTROPY, MAX_TOP_CLASS = 0.1, 0.9
"""Below this share of ln K, or above this share of a batch in one class, the generator has collapsed."""


class Record:
    """The open record of one run folder, on rank 0."""

    def __init__(self, path: Path, config: Config, start: int, names: list[str], warn: Callable[[str], None]) -> None:
        """`start`: rounds the run has behind it; rows of later ones are dropped, for they will come again."""
        self.path, self.config, self.names, self.warn = path, config, names, warn
        self.log = Log(path / "metrics.jsonl", keep_through=start)
        tags = {"data_free": METHODS[config.method].data_free, "commit": folder.commit()}
        tags |= {f"{role}.sha256": record["sha256"] for role, record in folder.recorded(path).items()}
        self.experiment = tracking.Experiment(config, path, tags, warn)
        self.experiment.params(config_module.flat(config))
        if config.data.name != "none" and config.tracking.uri != tracking.OFF:
            self.experiment.data_set(_test_set(config))
        self._collapsed, self._closed = 0, False
        self.alarm: str | None = None

    def began(self, start: Start, doubts: Sequence[str]) -> None:
        """What weights the student begins with, and what is to be said of the settings."""
        for line in ([start.line] if start.line else []) + list(doubts):
            self.warn(line)
        if start.inherited is not None:
            self.experiment.tag("inherited", f"{start.inherited:.4f}")

    def row(self, round_index: int, seconds: float, values: Mapping[str, float]) -> None:
        """A report's values, to metrics.jsonl and MLflow; watches for collapse."""
        self.log.write(round_index, seconds, values)
        self.experiment.metrics(round_index, values)
        if "generator/entropy" not in values:  # a row of an evaluation alone
            return
        entropy, top_class = values["generator/entropy"], values["generator/top_class"]
        looks = entropy < MIN_ENTROPY or top_class > MAX_TOP_CLASS
        self._collapsed = self._collapsed + 1 if looks else 0
        if self._collapsed == COLLAPSED_ROWS and not self.alarm:
            self.alarm = "collapsed"
            self.experiment.tag("collapsed", round_index)
            self.warn(
                f"the generator has collapsed by round {round_index}: the teacher puts {top_class:.0%} of its images "
                f"in one class, entropy {entropy:.2f} of 1; a weight on class_balance or a lower generator.lr may help"
            )

    def samples(self, networks: Networks, round_index: int) -> None:
        """A grid of generated images labelled with what the networks say of them; nothing where pictures are off.

        Every process has to call, since each holds a part of a pool.
        """
        x = samples(self.config, networks)
        if x is None or networks.teacher is None:
            return
        with evaluating([networks.teacher, networks.student]):
            t, s = networks.teacher(x), networks.student(x)
        rgb = preprocessing.preprocessing(self.config).denormalise(x.float()).cpu()
        path = self.path / "samples" / f"round-{round_index:08d}.png"
        caption = f"{self.config.recipe}, {self.config.method}, round {round_index} of {self.config.rounds}"
        task = tasks.load(self.config.task)
        pictures.save_grid(task, path, rgb, t.float().cpu(), s.float().cpu(), self.names, caption)
        self.experiment.picture(path, "samples")

    def scored(self, networks: Networks) -> None:
        """samples/test.png: test images, spread over the set, with their labels and what the networks say of them."""
        if not self.config.pictures or self.config.data.name == "none" or networks.teacher is None:
            return
        task = tasks.load(self.config.task)
        data = task.dataset(self.config, "test")
        images_read, truth = spread(data, NUM_SCORED)
        x = images_read.to(networks.runtime.device, networks.runtime.dtype)
        with evaluating([networks.teacher, networks.student]):
            fitted = (Fitted(each, sides(self.config.input.size)) for each in (networks.teacher, networks.student))
            t, s = (network(x, truth.shape[1:]) for network in fitted)
        rgb = preprocessing.preprocessing(self.config).denormalise(images_read)
        path = self.path / "samples" / "test.png"
        caption = f"{self.config.recipe}, {self.config.method}, {len(rgb)} of {len(data)} test images"
        pictures.save_grid(task, path, rgb, t.float().cpu(), s.float().cpu(), self.names, caption, truth)
        self.experiment.picture(path, "samples")

    def curves(self) -> None:
        """curves.png from all rows so far."""
        path = self.path / "curves.png"
        title = f"{self.config.recipe}, {self.config.method}, seed {self.config.seed}"
        if pictures.curves(read(self.path / "metrics.jsonl"), path, title):
            self.experiment.picture(path, "curves")
        else:
            self.warn("matplotlib is not installed: no curves.png was drawn")

    def model(self, networks: Networks) -> None:
        """The student into MLflow, unless `tracking.model` is off."""
        if self.config.tracking.model:
            self.experiment.model(networks.student, config_module.image_shape(self.config))

    def close(self, status: tracking.Status) -> None:
        """Ends the record, once; the run folder is complete without it."""
        if not self._closed:
            self._closed = True
            self.log.close()
            self.experiment.close(status)


def _test_set(config: Config) -> tracking.DataSet:
    """What MLflow is told of the images that the run is scored on."""
    data = tasks.load(config.task).dataset(config, "test")
    found = digest(data, preprocessing.preprocessing(config))
    profile = {"split": "test", "images": len(data), "classes": len(data.classes)}
    return tracking.DataSet(config.data.name, found, str(data_root(config).absolute()), profile)


class NoRecord(Record):
    """The record of every other rank, which writes nothing."""

    def __init__(self, path: Path, config: Config, start: int, names: list[str], warn: Callable[[str], None]) -> None:
        self.path, self.config, self.names, self.alarm = path, config, names, None

    def began(self, start: Start, doubts: Sequence[str]) -> None:
        """Nothing."""

    def row(self, round_index: int, seconds: float, values: Mapping[str, float]) -> None:
        """Nothing."""

    def samples(self, networks: Networks, round_index: int) -> None:
        """This process's part of the images."""
        samples(self.config, networks)

    def scored(self, networks: Networks) -> None:
        """Nothing."""

    def curves(self) -> None:
        """Nothing."""

    def model(self, networks: Networks) -> None:
        """Nothing."""

    def close(self, status: tracking.Status) -> None:
        """Nothing."""


def samples(config: Config, networks: Networks) -> Tensor | None:
    """The images of a sample grid [NUM_SAMPLES, C, H, W]; None where there are none or pictures are off."""
    if not config.pictures or not networks.generates or networks.teacher is None:
        return None
    return networks.generate(NUM_SAMPLES, "samples")


def class_names(config: Config) -> list[str]:
    """The names of the classes, from the data set where there is one, else their numbers.

    Opens every split that the run will read: what is wrong with it shows now, not when the run is over.
    """
    if config.data.name == "none":
        return [str(index) for index in range(config.classes)]
    task = tasks.load(config.task)
    if not METHODS[config.method].data_free:
        task.dataset(config, "train", augment=True)
    return list(task.dataset(config, "test").classes)


class Means:
    """The values of a round's turns by "player/term", and their means."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, player: str, values: Mapping[str, Tensor]) -> None:
        """Takes in the values of a turn, scalars on the device."""
        for name, value in values.items():
            self._values.setdefault(f"{player}/{name}", []).append(value)

    def extend(self, other: Means) -> None:
        """Takes in all that another has."""
        for name, values in other._values.items():
            self._values.setdefault(name, []).extend(values)

    def clear(self) -> None:
        """Begins a round."""
        self._values.clear()

    def read(self) -> dict[str, float]:
        """The means; this is where the host waits for the device."""
        means = torch.stack([torch.stack(values).mean() for values in self._values.values()])
        return dict(zip(self._values, means.tolist(), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint within a round: all values [n] by name, in their order."""
        numbered = enumerate(self._values.items())
        return {f"{PREFIX}{number:04d}/{name}": torch.stack(values).cpu() for number, (name, values) in numbered}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes over what `tensors` gave; any others are left."""
        for key in sorted(key for key in tensors if key.startswith(PREFIX)):
            name = key.removeprefix(PREFIX).split("/", 1)[1]
            self._values[name] = list(tensors[key].to(device).unbind())


def values(terms: Terms) -> dict[str, Tensor]:
    """The values of a turn by term, and their weighted sum."""
    return {**terms.values, "total": terms.total.detach()}
