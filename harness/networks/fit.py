"""Whether a network answers images as a run needs it: logits of the task's shape, steady, and with gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness import errors
from harness import task as tasks
from harness.algorithm.moments import NormLayer
from harness.config import Config, image_shape
from harness.errors import UserError
from harness.networks import sizes
from harness.networks.layers import evaluating

TOLERANCE = 1e-2
"""Largest difference between two answers to one image, as a share of the largest value: rounding."""


def check_fit(name: str, module: nn.Module, config: Config) -> None:
    """Raises UserError unless a network maps images [B, C, H, W] of the run's size to logits of the task's shape.

    It has to leave the images as they are, and in eval mode its answer to one has to be the same each time, whatever
    the others of the batch are. `name` stands for the network in messages.
    """
    images = _images(config)
    _check(name, module, config, images[[0, 1]])
    with evaluating([module]):
        x = images[[0, 1]]
        first = module(x)[0]
        if _differ(x, images[[0, 1]]):
            raise UserError(f"{name} writes over the images it is given: let it compute x = x - 1, not x -= 1")
        if not _differ(first, module(images[[0, 2]])[0]):
            return
        again = module(images[[0, 1]])[0]
    if _differ(first, again):
        raise UserError(f"{name} answers differently to the same images each time: is dropout on in eval mode?")
    raise UserError(
        f"{name} answers to an image by the others of its batch: does a batch norm keep no running statistics?"
    )


def check_answer(name: str, module: nn.Module, config: Config) -> None:
    """Raises UserError unless a network answers with logits of the task's shape at the nearest size that it takes.

    For evaluation, which resizes images.
    """
    x = _images(config)[:2]
    with evaluating([module]):
        size = sizes.nearest(module, x)
    _check(name, module, config, x if size is None else nn.functional.interpolate(x, size))


def check_gradients(name: str, module: nn.Module, config: Config, images: bool, weights: bool) -> None:
    """Raises UserError unless the gradients of a network's answers reach the images, or its weights, or both."""
    x = _images(config)[:2].requires_grad_(images)
    module.zero_grad()
    with evaluating([module]), torch.enable_grad():
        try:
            answer = module(x)
            if answer.requires_grad:
                answer.sum().backward()
        except Exception as error:  # layers raise many types
            raise UserError(f"{name}: its gradients cannot be computed: {errors.one_line(error)}") from None
    reached = any(weight.grad is not None for weight in module.parameters())
    module.zero_grad()
    advice = "does its forward run under torch.no_grad, or detach what it computes?"
    if images and x.grad is None:
        raise UserError(f"{name}: no gradient reaches the images, from which the generator learns: {advice}")
    if weights and not reached:
        raise UserError(f"{name}: no gradient reaches its weights: are they frozen? {advice}")


def check_training(name: str, module: nn.Module, config: Config) -> list[str]:
    """The names of the buffers, besides those of batch norm, that a network writes to in train mode.

    Raises UserError unless it answers in train mode, too, with logits of the task's shape, or where it writes to a
    buffer that its state dict, and so a checkpoint, leaves out.
    """
    x, before = _images(config)[:2], dict(module.named_buffers())
    copies = {key: value.clone() for key, value in before.items()}  # they move, its own do not
    was = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answer: object = torch.func.functional_call(module.train(), copies, (x,))
    except Exception as error:  # layers raise many types
        raise UserError(f"{name} cannot be trained: {errors.one_line(error)}") from None
    finally:
        module.train(was)
    expected = [2, *tasks.load(config.task).answer_shape(config.classes, *x.shape[2:])]
    if not isinstance(answer, Tensor) or list(answer.shape) != expected:
        found = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise UserError(
            f"{name} answers in train mode with {found}, expected logits {expected} as in evaluation: switch its "
            "auxiliary outputs off"
        )
    of_norms = {
        f"{path}.{key}"
        for path, layer in module.named_modules()
        if isinstance(layer, NormLayer)
        for key, _ in layer.named_buffers()
    }
    moved = [key for key in copies if key not in of_norms and not torch.equal(copies[key], before[key])]
    if lost := [key for key in moved if key not in module.state_dict()]:
        raise UserError(
            f"{name} writes to its buffer {lost[0]} in training, which is registered with persistent=False and so in "
            "no checkpoint: register it with persistent=True"
        )
    return moved


def _images(config: Config) -> Tensor:
    """Three images of a run, [3, C, H, W]: noise, zeros, and noise of four times the deviation."""
    noise = torch.randn(3, *image_shape(config), generator=torch.Generator().manual_seed(0))
    return noise * noise.new_tensor([1.0, 0.0, 4.0])[:, None, None, None]


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are not alike; those of the device "meta" have no values."""
    return not first.is_meta and bool((first - second).abs().max() > TOLERANCE * first.abs().max())


def _check(name: str, module: nn.Module, config: Config, x: Tensor) -> None:
    height, width = x.shape[2:]
    expected = [2, *tasks.load(config.task).answer_shape(config.classes, height, width)]
    with evaluating([module]):
        try:
            answer: object = module(x)
        except Exception as error:  # layers raise many types for a wrong shape
            reason = errors.one_line(error)
            raise UserError(
                f"{name} cannot take images {list(x.shape)}, which follow from input.size{_advice(module, x)}: {reason}"
            ) from None
        if not isinstance(answer, Tensor):
            raise UserError(f"{name} answers with a {type(answer).__name__}, expected logits {expected}")
        if list(answer.shape) != expected:
            advice = _advice(module, x) if answer.dim() == len(expected) and answer.shape[1] == expected[1] else ""
            raise UserError(
                f"{name} answers with {list(answer.shape)}, expected logits {expected} of {expected[1]} classes{advice}"
            )
        if not answer.is_meta and bool((answer >= 0).all()) and bool(((answer.sum(1) - 1).abs() < 1e-3).all()):
            raise UserError(f"{name} answers with probabilities, expected logits: leave out its softmax")


def _advice(module: nn.Module, x: Tensor) -> str:
    """The size nearest to that of images x which the network takes, as part of a message; "" where there is none."""
    size = sizes.nearest(module, x)
    if size is None or size == tuple(x.shape[2:]):
        return ""
    return f"; the nearest it takes is input.size={size[0] if size[0] == size[1] else list(size)}"
