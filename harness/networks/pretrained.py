"""Weights that timm and torchvision publish for their networks, and encoders of smp's, through their own caches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from harness import files
from harness.config import Config
from harness.errors import UserError, nearest, one_line
from harness.networks import hub

FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's own switches of what `torch.load` may read, over what its caller asks for."""


@dataclass(frozen=True)
class Published:
    """Weights that a library publishes for one of its networks, and the input that they expect."""

    name: str
    """The network and which of its weights, for people."""
    classes: int
    """Number of logits."""
    mean: list[float]
    """Per channel, red first, for pixels in 0..1."""
    std: list[float]
    """Likewise."""
    source: hub.Reference | str
    """Where they are: on a hub, or a URL."""
    choice: Any = None
    """torchvision's own name of them."""


def find(network: str, arguments: Mapping[str, Any]) -> Published:
    """The weights that `teacher.checkpoint=pretrained` means for a network, without any download; UserError for none.

    Of timm's a tag in the name chooses, timm:resnet18.a1_in1k, of torchvision's the argument `weights`; else the
    library's default ones are meant.
    """
    library, _, name = network.partition(":")
    if library == "timm":
        return _timm(name)
    if library == "torchvision":
        return _torchvision(name, arguments.get("weights", "DEFAULT"))
    advice = "name a file, or hub:OWNER/NAME"
    if library == "smp":
        advice = (
            "smp has weights of encoders, not of whole networks; `ddad teach` begins with an encoder's where "
            f"teacher.arguments.encoder_weights=imagenet. Else {advice}"
        )
    raise UserError(f"network {network!r} has no published weights, as timm's and torchvision's have: {advice}")


def expected(network: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{channels, mean, std} of the input that a network's published weights expect, as fields of the teacher."""
    found = find(network, arguments)
    return {"channels": "rgb", "mean": found.mean, "std": found.std}


def check(config: Config) -> None:
    """Raises UserError where the teacher's published weights have other classes or channels than the run."""
    found = find(config.teacher.network, config.teacher.arguments)
    if config.classes != found.classes:
        raise UserError(
            f"classes={config.classes}: the weights of {found.name} have {found.classes}: "
            f"set classes={found.classes}, or name a checkpoint"
        )
    if config.teacher.channels != "rgb":
        raise UserError(f"teacher.channels={config.teacher.channels}: the weights of {found.name} take rgb")


def file(network: str, arguments: Mapping[str, Any]) -> Path:
    """The file of a network's published weights in its library's cache, downloaded where it is not there yet."""
    found = find(network, arguments)
    if isinstance(found.source, hub.Reference):
        return hub.fetch(hub.cached(found.source) or hub.pin(found.source))
    return _from_url(found.source, found.name)


def fetch_encoder(name: str, weights: object) -> None:
    """Brings the weights of an encoder of segmentation-models-pytorch into the cache from which it reads them."""
    import segmentation_models_pytorch as smp

    if name.startswith("tu-"):  # one of timm's
        file(f"timm:{name.removeprefix('tu-')}", {})
        return
    known = smp.encoders.encoders[name]["pretrained_settings"]
    if weights not in known:
        raise UserError(f"encoder_weights={weights}: {name} has no such weights{nearest(str(weights), known)}")
    for part in ("config.json", "model.safetensors"):
        reference = hub.Reference(known[weights]["repo_id"], part, known[weights]["revision"])
        hub.fetch(hub.pin(reference))


@contextmanager
def weights_only() -> Iterator[None]:
    """Inside, torch.load takes weights alone, whatever a library asks of it: torchvision's asks for any pickle."""
    before = {key: os.environ.pop(key, None) for key in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[FORCE]
        os.environ.update({key: value for key, value in before.items() if value is not None})


def _timm(name: str) -> Published:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"unknown network 'timm:{name}'{nearest(name, timm.list_models())}")
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = [each.partition(".")[2] for each in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        raise UserError(f"timm:{name}: timm has no such weights{nearest(name.partition('.')[2], known)}") from None
    if found is None or not (found.hf_hub_id or (isinstance(found.url, str) and found.url)):
        raise UserError(f"timm:{name}: timm publishes no weights for it: name a checkpoint")
    source: hub.Reference | str = found.url
    if found.hf_hub_id:
        repository, _, revision = found.hf_hub_id.partition("@")
        source = hub.Reference(repository, found.hf_hub_filename, revision or None)
    full = f"timm:{found.architecture}" + (f".{found.tag}" if found.tag else "")
    return Published(full, found.num_classes, list(found.mean), list(found.std), source)


def _torchvision(name: str, choice: object) -> Published:
    from torchvision import models

    try:
        known = models.get_model_weights(name)
    except ValueError:
        raise UserError(f"unknown network 'torchvision:{name}'{nearest(name, models.list_models())}") from None
    if choice not in known.__members__:  # DEFAULT is one of them
        hint = nearest(str(choice), known.__members__)
        raise UserError(f"teacher.arguments.weights={choice}: {name} has no such weights{hint}")
    found = known[choice]
    spec, classes = found.transforms(), len(found.meta["categories"])
    return Published(f"torchvision:{name} {found.name}", classes, list(spec.mean), list(spec.std), found.url, found)


def _from_url(url: str, name: str) -> Path:
    """The file of a URL in torch.hub's cache; of several processes one downloads it."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    if path.exists():
        return path
    with files.lock(path.with_name(f".{path.name}.lock"), wait=True):
        if not path.exists():
            digest = torch.hub.HASH_REGEX.search(path.name)
            try:
                torch.hub.download_url_to_file(url, str(path), digest[1] if digest else None, progress=False)
            except Exception as error:  # of the network, of the disk, or of a hash that differs
                raise UserError(
                    f"{name}: {url} cannot be had ({one_line(error)}): without a network, put the file at {path}"
                ) from None
    return path
