"""The networks of a run, each from its part of the configuration and a seed of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from harness import task as tasks
from harness.algorithm import generators
from harness.algorithm.latents import mix
from harness.config import MEMORY, PRETRAINED, PRUNED, UNTRAINED, Config, Student, Teacher, image_shape
from harness.errors import UserError
from harness.networks import build, cutting, preprocessing, pretrained, pruning, sources, weights
from harness.networks.cutting import Structure
from harness.networks.fit import check_fit
from harness.networks.layers import evaluating

NOISE = 16
"""Number of images of normal noise on which the effect of removing a teacher's block is measured."""


def teacher(
    config: Config, say: Callable[[str], None] = lambda line: None, source: nn.Module | None = None
) -> nn.Module:
    """The teacher with its weights, or a copy of `source`; UserError where the file is missing or does not fit.

    `say` gets a line about the weights that were used if the file holds others.
    """
    if source is not None:
        return copy.deepcopy(source)
    spec = config.teacher
    assert spec.checkpoint is not None
    if spec.checkpoint == MEMORY:
        raise UserError(
            f"teacher.checkpoint={MEMORY}: these are the weights of a module that is given from Python "
            "(docs/from-python.md); name a file of weights"
        )
    with seeded(config.seed, "teacher"):
        module = with_weights(config, spec.checkpoint, f"teacher.network={spec.network}", say)
    check_fit(f"teacher.network={spec.network}", module, config)
    return module


def with_weights(
    config: Config, checkpoint: str, name: str, say: Callable[[str], None], option: str = "teacher.entry="
) -> nn.Module:
    """The teacher's network with the weights that `checkpoint` names; `name` and `option` are as for `weights.load`."""
    spec, task, channels = config.teacher, tasks.load(config.task), image_shape(config)[0]
    if checkpoint in (UNTRAINED, PRETRAINED):
        if checkpoint == PRETRAINED:
            pretrained.check(config)
        return build.network(
            task, spec.network, config.classes, channels, spec.arguments, published=checkpoint == PRETRAINED
        )
    arguments = build.without_weights(spec.network, spec.arguments)
    module = build.network(task, spec.network, config.classes, channels, arguments)
    weights.load(module, sources.locate(checkpoint), name, spec.entry, say, option)
    return module


def student(config: Config, structure: Structure | None = None, source: nn.Module | None = None) -> nn.Module:
    """The student with fresh weights; UserError where it does not fit the images or the classes.

    `structure`: that of a pruned one; None finds it anew, from the teacher with its weights. `source`: a module in
    memory that is copied, weights included: the student, or the teacher of a pruned one.
    """
    spec: Teacher | Student = config.student
    if config.student.network == PRUNED:
        spec = config.teacher
        if structure is None:
            structure = pruned(config, teacher(config, source=source))
    if source is not None:
        module = copy.deepcopy(source).train()
    else:
        task, channels, arguments = tasks.load(config.task), image_shape(config)[0], spec.arguments
        if spec is config.teacher:
            arguments = build.without_weights(spec.network, arguments)
        with seeded(config.seed, "student"):
            module = build.network(task, spec.network, config.classes, channels, arguments)
    if config.student.network == PRUNED:
        assert structure is not None
        cutting.cut(module, structure)
    spec = config.student
    check_fit(f"student.network={spec.network}", module, config)
    return module


def pruned(config: Config, teacher: nn.Module) -> Structure:
    """The structure of the student that is cut out of the teacher, the same in every process."""
    if config.teacher.checkpoint == PRETRAINED and getattr(teacher, "transform_input", False):
        raise UserError(
            f"student.network={PRUNED}: {config.teacher.network}'s published weights rescale its input, so that a "
            "student cut out of it could not be rebuilt without them: take timm's network"
        )
    noise = torch.randn(NOISE, *image_shape(config), generator=torch.Generator().manual_seed(0))
    with evaluating([teacher]):
        return pruning.plan(teacher, config.student.arguments, noise, f"teacher.network={config.teacher.network}")


def generator(config: Config, *keys: int | str) -> nn.Module:
    """The generator with fresh weights, others by `keys`; UserError where it cannot make images of the input size."""
    spec, pixels = config.generator, preprocessing.preprocessing(config)
    try:
        with seeded(config.seed, "generator", *keys):
            shape, normalisation = image_shape(config), (pixels.mean, pixels.std)
            return generators.build(spec.network, spec.latent_size, shape, spec.width, normalisation)
    except ValueError as error:
        raise UserError(str(error)) from None


def restarts(config: Config, round_index: int) -> bool:
    """Whether the generator begins anew in a round (`generator.restart`), with `generator(config, round_index)`."""
    every = config.generator.restart
    return every > 0 and round_index > 0 and round_index % every == 0


@contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seeds torch's global generator from the keys inside the context, and restores its state after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(*keys))
        yield
