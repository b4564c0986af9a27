"""The turns: the whole of the algorithm. Theta are the student's parameters, phi the generator's.

Outside its own turn a network normalises as in training, but neither its parameters nor its running statistics
change (`Player.turn`). A loss comes here bound to its weights and to the reduction over processes, so that nothing
below depends on method, task, engine, precision or world size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from torch import Tensor

from harness.algorithm.terms import Answer, Ask, Terms

Target = TypeVar("Target", Answer, Tensor)
"""What a student learns from: the teacher's answer, or labels."""


class Player(Protocol):
    """A network that is trained: `harness.training.players.Player`."""

    def turn(self) -> AbstractContextManager[None]:
        """Inside, its parameters and running statistics may change."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Forward in its own turn."""

    def answer(self, x: Tensor) -> Answer:
        """The same, with what its terms need beside the logits."""

    def guest(self, inputs: Tensor) -> Tensor:
        """Forward in another's turn."""

    def descend(self, terms: Terms) -> None:
        """One update along the gradient of `terms.total`."""


def student_turn(student: Player, x: Tensor, target: Target, loss: Callable[[Target, Answer], Terms]) -> Terms:
    """theta <- argmin D(t, S_theta(x)), x [B, C, H, W], t = T(x); or CE of labels, where a teacher is taught.

    x and the target are data: no gradient flows back to G or T.
    """
    with student.turn():  # the student's weights learn; everything else is frozen
        terms = loss(target, student.answer(x))
        student.descend(terms)
    return terms


def generator_turn(
    teacher: Callable[[Tensor], Answer],
    student: Player,
    generator: Player,
    z: Tensor,
    loss: Callable[[Answer, Ask, Tensor], Terms],
) -> Terms:
    """phi <- argmin -w A(D(T(x), S(x))) + w_bn R_bn(x) + ...,  x = G_phi(z), z [B, Z]."""
    with generator.turn():
        x = generator(z)
        t, s = teacher(x), lambda: Answer(student.guest(x))  # dx flows through both; their weights stay frozen
        terms = loss(t, s, x)  # t.moments: the batch-norm statistics x caused in T; s is asked where a term needs it
        generator.descend(terms)
    return terms
