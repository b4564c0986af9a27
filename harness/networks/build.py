"""Builds networks by name: the task's own, those of three libraries, or a user's."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from harness.config import MEMORY
from harness.errors import UserError, one_line
from harness.networks import own_file, pretrained
from harness.task import Task

WEIGHTS = ("pretrained", "weights", "weights_backbone")
"""Arguments by which libraries take weights, which `teacher.checkpoint` names here."""


def network(
    task: Task,
    name: str,
    classes: int,
    channels: int,
    arguments: Mapping[str, Any] = {},
    published: bool = False,
) -> nn.Module:
    """The network of that name with fresh weights, [B, channels, H, W] -> logits [B, classes, ...].

    `name` is one of the task's, "timm:NAME", "torchvision:NAME", "smp:ARCH/ENCODER" or "path/to/file.py:function";
    `arguments` are passed on as keyword arguments. `published`: with the weights that timm or torchvision publishes
    for it (`pretrained.check` compares their classes). Else nothing is downloaded unless smp's `encoder_weights` asks
    for it. Inside `with torch.device("meta")` this is quick whatever the size: enough to check a name and to count
    parameters. Raises UserError if the network cannot be built.
    """
    if clash := sorted({"classes", "channels"} & arguments.keys()):
        raise UserError(f"network {name!r}: {clash[0]} is not one of its arguments, it follows from the configuration")
    library, _, rest = name.partition(":")
    if library == MEMORY:
        raise UserError(
            f"network {name!r} was a module in memory, and its name does not rebuild it: give the module again, from "
            "Python (docs/from-python.md), or begin a run with its code in a file, path/to/file.py:function"
        )
    try:
        if library in _LIBRARIES:
            _check_weights(name, arguments, published)
            with pretrained.weights_only():
                module: object = _LIBRARIES[library](rest, classes, channels, arguments, published)
        elif ":" in name or name.endswith(".py"):
            module = own_file.network(name, classes, channels, arguments)
        else:
            module = task.network(name, classes, channels, **arguments)
    except UserError:
        raise
    except Exception as error:  # a library or a user's function may raise anything
        given = f" with {dict(arguments)}" if arguments else ""
        raise UserError(
            f"network {name!r} could not be built{given}: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"network {name!r}: expected a torch.nn.Module, got {type(module).__name__}")
    lazy = [
        key for key, tensor in itertools.chain(module.named_parameters(), module.named_buffers()) if is_lazy(tensor)
    ]
    if lazy:
        raise UserError(
            f"network {name!r} has lazy layers, which have no weights before their first input ({lazy[0]}): give them "
            "their sizes"
        )
    return module


def without_weights(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network whose weights are loaded afterwards: without those that ask for a library's."""
    asking = {"smp": ("encoder_weights",), "torchvision": ("weights",)}.get(name.partition(":")[0], ())
    return {key: value for key, value in arguments.items() if key not in asking}


def _check_weights(name: str, arguments: Mapping[str, Any], published: bool) -> None:
    """Weights are named in one place: a checkpoint and an argument could contradict each other."""
    for key in sorted(arguments.keys() & set(WEIGHTS)):
        if not (published and key == "weights" and name.startswith("torchvision:")):
            raise UserError(
                f"network {name!r}: {key}={arguments[key]!r} is no argument here: teacher.checkpoint=pretrained takes "
                "the weights that timm or torchvision publishes"
            )


def _timm(name: str, classes: int, channels: int, arguments: Mapping[str, Any], published: bool) -> nn.Module:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(f"timm:{name}", timm.list_models())
    own = {"pretrained_cfg_overlay": {"file": str(pretrained.file(f"timm:{name}", {}))}} if published else {}
    module: nn.Module = timm.create_model(
        name, pretrained=published, num_classes=classes, in_chans=channels, **own, **arguments
    )
    return module


def _torchvision(name: str, classes: int, channels: int, arguments: Mapping[str, Any], published: bool) -> nn.Module:
    from torchvision import models

    known = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    if name not in known:
        raise _unknown(f"torchvision:{name}", known)
    if channels != 3:
        raise UserError(
            f"network 'torchvision:{name}' takes 3 channels, these images have {channels}: use timm:NAME or a file of "
            "your own, or set teacher.channels=rgb"
        )
    weights: dict[str, Any] = {"weights": None}
    if published:
        weights["weights"] = pretrained.find(f"torchvision:{name}", arguments).choice
        pretrained.file(f"torchvision:{name}", arguments)
    if has_backbone(name):
        weights["weights_backbone"] = None  # by default the backbone's are downloaded
    module: nn.Module = models.get_model(name, num_classes=classes, **{**arguments, **weights})
    module.register_forward_hook(_only_logits)
    return module


def has_backbone(name: str) -> bool:
    """Whether torchvision's builder of that name takes a backbone with weights of its own."""
    from torchvision import models

    return "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters


def _only_logits(module: nn.Module, inputs: object, output: Any) -> Any:
    """torchvision's segmentation networks return {"out": logits, ...}, some classifiers a tuple in training mode."""
    return output["out"] if isinstance(output, dict) else getattr(output, "logits", output)


def _smp(name: str, classes: int, channels: int, arguments: Mapping[str, Any], published: bool) -> nn.Module:
    import segmentation_models_pytorch as smp

    architecture, slash, encoder = name.partition("/")
    if not slash:
        raise UserError(f"network 'smp:{name}': expected smp:ARCH/ENCODER, such as smp:DeepLabV3Plus/resnet50")
    architectures = {kind.__name__: kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture not in architectures:
        raise _unknown(f"smp:{architecture}/...", architectures)
    if encoder not in smp.encoders.get_encoder_names() and not encoder.startswith("tu-"):  # tu-: any of timm's
        raise _unknown(f"smp:.../{encoder}", smp.encoders.get_encoder_names())
    build_one = architectures[architecture]
    if not encoder.startswith("tu-"):  # other encoders silently ignore unknown arguments
        for key in arguments.keys() - inspect.signature(build_one).parameters.keys():
            raise UserError(f"network 'smp:{name}' takes no argument {key!r}")
    options = {"encoder_weights": None, **arguments}
    if options["encoder_weights"] is not None:
        pretrained.fetch_encoder(encoder, options["encoder_weights"])
    module: nn.Module = build_one(encoder, in_channels=channels, classes=classes, **options)
    return module


_LIBRARIES: dict[str, Callable[[str, int, int, Mapping[str, Any], bool], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "smp": _smp,
}


def _unknown(name: str, known: Collection[str]) -> UserError:
    """An error with the three nearest names; the lists are too long to show."""
    word = re.split("[:/]", name.removesuffix("/..."))[-1]
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.0)
    return UserError(f"unknown network {name!r}; the nearest names are {', '.join(close)}")
