"""The turns: the whole of the algorithm. Theta are the student's parameters, phi the generator's.

Outside its own turn a network normalises as in training, but neither its parameters nor its running statistics
change (`Player.turn`). A loss is passed in with its weights and the reduction over processes, so that this
file does not depend on method, task, engine, precision or world size.

A term of a loss is a coroutine: it yields its local sums, is sent the same sums over all processes, and returns its
value. So every term, a plain mean or not, is a function of the global batch, and `combine` needs one reduction for all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from harness.algorithm.moments import LayerMoments

Term = Generator[Tensor, Tensor, Tensor]
"""Yields local sums [N], is sent global sums [N], returns a scalar."""

Weighted = tuple[float, Term]
"""(weight in the loss, term); a term of weight 0 is only logged."""

Reduce = Callable[[Tensor], Tensor]
"""Sums a vector over all processes, differentiably; the identity in a single one."""


@dataclass(frozen=True)
class Answer:
    """The outputs of a network for images x [B, C, H, W]."""

    logits: Tensor
    """[B, K], or [B, K, H, W] for dense prediction."""
    features: Tensor | None = None
    """Input of the last layer, [B, F] or [B, F, h, w], if it was requested."""
    moments: Sequence[LayerMoments] = field(default_factory=tuple)
    """Batch statistics at the batch-norm layers, if they were requested."""
    maps: Sequence[Tensor] = field(default_factory=tuple)
    """Feature maps [B, C, h, w] for attention transfer and hints, if they were requested."""
    blocks: Sequence[Tensor] = field(default_factory=tuple)
    """Outputs of blocks [B, C, ...], compared value by value, if they were requested."""


Ask = Callable[[], Answer]
"""Runs a network and returns its outputs; called only if a term needs them."""


@dataclass(frozen=True)
class Terms:
    """The losses of a turn over the global batch, the same on every process."""

    total: Tensor
    """The weighted sum that the player minimises; a scalar with a graph."""
    values: dict[str, Tensor]
    """Every term by name, unweighted and detached."""


def unreduced(sums: Tensor) -> Tensor:
    """The reduction of a single process."""
    return sums


def combine(terms: Mapping[str, Weighted], reduce: Reduce) -> Terms:
    """Computes all terms through one fused reduction; their weighted sum is the loss."""
    local = [next(term) for _, term in terms.values()]
    parts = reduce(torch.cat(local)).split([sums.numel() for sums in local])
    values = [_finish(term, part) for (_, term), part in zip(terms.values(), parts, strict=True)]
    assert any(weight for weight, _ in terms.values()), "a loss needs a term with a weight"
    weighted = [weight * value for (weight, _), value in zip(terms.values(), values, strict=True) if weight]
    return Terms(torch.stack(weighted).sum(), {n: v.detach() for n, v in zip(terms, values, strict=True)})


def mean(values: Tensor) -> Term:
    """Mean over all elements of all processes."""
    total = yield torch.stack([values.sum(), values.new_full((), values.numel())])
    return total[0].div(total[1])


def _finish(term: Term, sums: Tensor) -> Tensor:
    try:
        term.send(sums)
    except StopIteration as stop:
        value: Tensor = stop.value
        return value
    raise AssertionError("a term yields once")


Target = TypeVar("Target", Answer, Tensor)
"""The target of a student's turn: the teacher's outputs, or labels."""


class Player(Protocol):
    """A network that is trained: `harness.training.players.Player`."""

    def turn(self) -> AbstractContextManager[None]:
        """Inside this context its parameters and running statistics may change."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward pass in its own turn."""

    def answer(self, x: Tensor) -> Answer:
        """The same, with the other outputs that its terms need."""

    def frozen_forward(self, inputs: Tensor) -> Tensor:
        """Forward pass in the turn of another player."""

    def descend(self, terms: Terms) -> None:
        """One update along the gradient of `terms.total`."""


def student_turn(student: Player, x: Tensor, target: Target, loss: Callable[[Target, Answer], Terms]) -> Terms:
    """theta <- argmin D(t, S_theta(x)), x [B, C, H, W], t = T(x); or CE with labels, to train a teacher.

    x and the target are data: no gradient flows back to G or T.
    """
    with student.turn():  # only the student's weights are trained
        terms = loss(target, student.answer(x))
        student.descend(terms)
    return terms


def generator_turn(
    teacher: Callable[[Tensor], Answer],
    student: Player,
    generator: Player,
    z: Tensor,
    loss: Callable[[Answer, Ask, Tensor], Terms],
    view: Callable[[Tensor], Tensor] = lambda x: x,
) -> Terms:
    """phi <- argmin -w A(D(T(x), S(x))) + w_bn R_bn(x) + ...,  x = view(G_phi(z)), z [B, Z]."""
    with generator.turn():
        x = view(generator(z))
        t, s = teacher(x), lambda: Answer(student.frozen_forward(x))  # frozen; gradients pass through both to x
        terms = loss(t, s, x)  # t.moments: batch statistics of x in T; s() runs only if a term needs it
        generator.descend(terms)
    return terms
