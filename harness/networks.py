"""Builds networks, a task's own, those of three libraries or a user's, and loads their weights."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from harness.errors import UserError, nearest
from harness.task import Task


def build(task: Task, name: str, classes: int, channels: int, arguments: Mapping[str, Any] = {}) -> nn.Module:
    """The network of that name with fresh weights, [B, channels, H, W] -> logits [B, classes, ...].

    `name` is one of the task's, "timm:NAME", "torchvision:NAME", "smp:ARCH/ENCODER" or "path/to/file.py:function";
    `arguments` are passed on as keyword arguments. Nothing is downloaded unless an argument asks for it. Inside
    `with torch.device("meta")` this is quick whatever the size: enough to check a name and to count parameters.
    Raises UserError where no network comes of it.
    """
    if clash := sorted({"classes", "channels"} & arguments.keys()):
        raise UserError(f"network {name!r}: {clash[0]} is not one of its arguments, it follows from the configuration")
    library, _, rest = name.partition(":")
    try:
        if library in _LIBRARIES:
            module: object = _LIBRARIES[library](rest, classes, channels, arguments)
        elif ":" in name or name.endswith(".py"):
            module = _own(name, classes, channels, arguments)
        else:
            module = task.network(name, classes, channels, **arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a library or a user's function raises: the line says which, and what
        given = f" with {dict(arguments)}" if arguments else ""
        raise UserError(
            f"network {name!r} could not be built{given}: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"network {name!r}: expected a torch.nn.Module, got {type(module).__name__}")
    return module


def _timm(name: str, classes: int, channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(f"timm:{name}", timm.list_models())
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **arguments)
    return module


def _torchvision(name: str, classes: int, channels: int, arguments: Mapping[str, Any]) -> nn.Module:
    from torchvision import models

    known = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    if name not in known:
        raise _unknown(f"torchvision:{name}", known)
    if channels != 3:
        raise UserError(
            f"network 'torchvision:{name}' takes 3 channels, these images have {channels}: use timm:NAME or a file of "
            "your own, or set teacher.channels=rgb"
        )
    weights = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        weights["weights_backbone"] = None  # by default the backbone's are downloaded
    module: nn.Module = models.get_model(name, num_classes=classes, **weights, **arguments)
    module.register_forward_hook(_only_logits)
    return module


def _only_logits(module: nn.Module, inputs: object, output: Any) -> Any:
    """torchvision's segmentation networks answer {"out": logits, ...}, some classifiers a tuple while training."""
    return output["out"] if isinstance(output, dict) else getattr(output, "logits", output)


def _smp(name: str, classes: int, channels: int, arguments: Mapping[str, Any]) -> nn.Module:
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
    if not encoder.startswith("tu-"):  # other encoders would drop an argument that nobody knows, without a word
        for key in arguments.keys() - inspect.signature(build_one).parameters.keys():
            raise UserError(f"network 'smp:{name}' takes no argument {key!r}")
    options = {"encoder_weights": None, **arguments}
    module: nn.Module = build_one(encoder, in_channels=channels, classes=classes, **options)
    return module


_LIBRARIES: dict[str, Callable[[str, int, int, Mapping[str, Any]], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "smp": _smp,
}


def _unknown(name: str, known: Collection[str]) -> UserError:
    """Names the three nearest, however far: these lists are too long to be shown whole."""
    word = re.split("[:/]", name.removesuffix("/..."))[-1]
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.0)
    return UserError(f"unknown network {name!r}; the nearest names are {', '.join(close)}")


def source_file(name: str) -> Path | None:
    """The user's own file that "path/to/file.py:function" names; None for any other network."""
    path, colon, _ = name.rpartition(":")
    return Path(path).expanduser() if colon and path.endswith(".py") else None


def located(name: str, record: Mapping[str, Any] | None) -> str:
    """A network's name with the user's file at the absolute path of its `file_record`: it holds from any folder."""
    return f"{record['path']}:{name.rpartition(':')[2]}" if record else name


def _own(name: str, classes: int, channels: int, arguments: Mapping[str, Any]) -> object:
    """Calls a function of a user's file, with classes and channels if it takes them."""
    path, wanted = source_file(name), name.rpartition(":")[2]
    if path is None or not wanted:
        raise UserError(
            f"network {name!r}: expected a name of the task's own, timm:NAME, torchvision:NAME, smp:ARCH/ENCODER "
            "or path/to/file.py:function"
        )
    namespace = _import(path, name)
    function = getattr(namespace, wanted, None)
    if not callable(function):
        own = [key for key, value in vars(namespace).items() if getattr(value, "__module__", "") == namespace.__name__]
        hint = nearest(wanted, own) if own else "; it defines none"
        raise UserError(f"network {name!r}: {path} has no function {wanted!r}{hint}")
    signature = inspect.signature(function)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    implied = {"classes": classes, "channels": channels}
    keywords = {key: value for key, value in implied.items() if takes_any or key in signature.parameters}
    keywords |= arguments
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise UserError(f"network {name!r}: {error}; it is {wanted}{signature}, called with {keywords}") from None
    return function(**keywords)


def _import(path: Path, name: str) -> ModuleType:
    """Runs a user's file as a module of its own."""
    module_name = f"ddad_network_{path.stem}_{sha256(path)[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses in the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(
            f"network {name!r}: {path} could not be imported: {type(error).__name__}: {one_line(error)}"
        ) from error
    return module


def one_line(message: object) -> str:
    """An error's message in one line of bearable length."""
    text = " ".join(str(message).split())
    return text if len(text) <= 300 else text[:297] + "..."


def head(module: nn.Module) -> nn.Module:
    """The last linear layer, or where there is none the last convolution: its input is the penultimate features."""
    return module.get_submodule(head_name(module))


def head_name(module: nn.Module) -> str:
    """The name of `head`'s layer."""
    for kinds in (nn.Linear, (nn.Conv2d, nn.ConvTranspose2d)):
        names: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, kinds)]
        if names:
            return names[-1]
    raise UserError(f"{type(module).__name__} has neither a linear layer nor a convolution, so no penultimate features")


@contextmanager
def observe_features(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the penultimate features of every forward pass inside the context: [B, F] or [B, F, h, w]."""
    found: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])

    handle = head(module).register_forward_pre_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def observe_maps(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, the list holds what each of the layers answered last: [B, C, h, w] each, in the layers' order."""
    found: list[Tensor] = [Tensor()] * len(layers)

    def hook(place: int, layer: nn.Module, inputs: object, output: Tensor) -> None:
        found[place] = output

    handles = [layer.register_forward_hook(partial(hook, place)) for place, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def num_parameters(module: nn.Module) -> int:
    """Number of parameters, trained or not; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal; UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            digest: str = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return digest


def file_record(path: Path) -> dict[str, Any]:
    """{path (absolute), size (bytes), sha256}: what tells later whether a file is still the same."""
    digest = sha256(path)
    return {"path": str(path.absolute()), "size": path.stat().st_size, "sha256": digest}
