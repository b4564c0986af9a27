"""Discrepancies and generator terms: the equations of docs/method.md as functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.algorithm.moments import LayerMoments, kl_distance, norm_distance
from harness.algorithm.turns import Term, mean

# Discrepancies D(t, s): logits [B, K, ...] of teacher and student, temperature -> values whose mean is D.


def l1(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """|t - s|, [B, K, ...]."""
    return (t - s).abs()


def mse(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """(t - s)^2, [B, K, ...]."""
    return (t - s).square()


def kl(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t / T) || softmax(s / T)), [B, ...]; T^2 keeps the gradient's scale (arXiv 1503.02531)."""
    log_p, log_q = (t / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def js(t: Tensor, s: Tensor, temperature: float) -> Tensor:
    """KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, natural logarithm, [B, ...]; at most ln 2."""
    log_p, log_q = (t / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return ((log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)) / 2).sum(1)


DISCREPANCIES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"l1": l1, "mse": mse, "kl": kl, "js": js}


def cross_entropy(s: Tensor, labels: Tensor, ignore_index: int | None) -> Term:
    """CE(s, y), mean over the labels [B] or [B, H, W] that are not `ignore_index`; 0 where there is none."""
    scored = labels != ignore_index if ignore_index is not None else torch.ones_like(labels, dtype=torch.bool)
    values = F.cross_entropy(s, labels.masked_fill(~scored, 0), reduction="none") * scored
    total = yield torch.stack([values.sum(), scored.sum().to(values.dtype)])
    return total[0].div(total[1].clamp_min(1))  # a batch without a scored label contributes 0


def discrepancy(t: Tensor, s: Tensor, name: str, temperature: float) -> Term:
    """D(t, s) over the global batch."""
    return mean(DISCREPANCIES[name](t, s, temperature))


def attention(t: Sequence[Tensor], s: Sequence[Tensor]) -> Term:
    """Attention transfer (arXiv 1612.03928) over maps [B, C, h, w] of teacher and student, pair by pair.

    sum_l mean (A(t_l) - A(s_l))^2, where A(f) is the mean of f^2 over channels as a vector [B, h w] of norm 1.
    """
    pairs = zip(t, s, strict=True)
    return mean(torch.stack([(_attended(a) - _attended(b)).square().mean(1) for a, b in pairs]).sum(0))


def features(t: Sequence[Tensor], s: Sequence[Tensor]) -> Term:
    """Distance between the outputs of blocks [B, C, ...] of teacher and student, pair by pair (FitNets, 1412.6550).

    mean_l [ mean (t_l - s_l)^2 / var(t_l) ], the variance over all values of the batch, at least a thousandth of their
    mean square: 0 for equal outputs, about 1 for a student's block whose output is the teacher's mean.
    """
    pairs = list(zip(t, s, strict=True))
    sums = [torch.stack([(a - b).square().sum(), a.sum(), a.square().sum(), a.new_tensor(a.numel())]) for a, b in pairs]
    total = (yield torch.cat(sums)).view(-1, 4)
    error, first, second = (total[:, :3] / total[:, 3:]).unbind(1)
    variance = (second - first.square()).maximum(1e-3 * second)  # rounding of the difference stays far below
    return (error / variance.clamp_min(torch.finfo(variance.dtype).tiny)).mean()


RIDGE = 1e-3
"""Ridge of the least-squares fit in `hints`, as a share of the mean variance of the student's channels."""


def hints(t: Sequence[Tensor], s: Sequence[Tensor]) -> Term:
    """What the student's maps [B, C_s, h, w] do not explain of the teacher's [B, C_t, h, w], pair by pair.

    mean_l [ 1 - R^2 ]: the squared error with which the teacher's values at a position are predicted by the best linear
    map, with intercept, of the student's values there, over all positions of the batch, as a share of their variance.
    So the widths may differ. FitNets (arXiv 1412.6550) learn such a map; here it is the batch's, in closed form.
    """
    values: list[Tensor] = []
    for a, b in zip(t, s, strict=True):
        targets, inputs = a.flatten(2), b.flatten(2)  # [B, C, h w]
        counted = b.new_tensor(inputs.numel() / inputs.shape[1])
        values += [counted, inputs.sum((0, 2)), (inputs @ inputs.mT).sum(0)]
        values += [targets.sum((0, 2)), (inputs @ targets.mT).sum(0), targets.square().sum()]
    sums = (yield torch.cat([value.flatten() for value in values])).split([value.numel() for value in values])
    total = [part.view(value.shape) for part, value in zip(sums, values, strict=True)]
    return torch.stack([_unexplained(*total[index : index + 6]) for index in range(0, len(total), 6)]).mean()


# Terms of the generator's turn.


def adversarial(t: Tensor, s: Tensor, name: str, temperature: float, transform: str, where: str = "all") -> Term:
    """A(D(t, s)); A is the identity, or log(1 + .) as in DFAD's segmentation.

    `where` "agreed": positions where t and s predict different classes count as 0 (CMI, arXiv 2105.08584).
    """
    values = DISCREPANCIES[name](t, s, temperature)
    if where == "agreed":
        agreed = t.argmax(1) == s.argmax(1)
        values = values * (agreed.unsqueeze(1) if values.dim() == t.dim() else agreed)
    value = yield from mean(values)
    return torch.log1p(value) if transform == "log1p" else value


def batch_norm(moments: Sequence[LayerMoments], form: str) -> Term:
    """R_bn: the sum over layers of `harness.algorithm.moments`' `norm` or `kl` distance."""
    sizes = [layer.sums.numel() for layer in moments]
    sums = (yield torch.cat([layer.sums for layer in moments])).split(sizes)
    distance = norm_distance if form == "norm" else kl_distance
    return torch.stack([distance(part, layer) for part, layer in zip(sums, moments, strict=True)]).sum()


def one_hot(t: Tensor) -> Term:
    """CE(t, argmax t), mean over samples and pixels (DAFL, arXiv 1904.01186)."""
    return mean(F.cross_entropy(t, t.argmax(1), reduction="none"))


def class_balance(t: Tensor) -> Term:
    """sum_c p_c ln p_c with p the mean of softmax(t) over the global batch: minus its entropy, in nats."""
    total = yield torch.cat([_over_classes(t.softmax(1)), _num_positions(t)])
    p = total[:-1] / total[-1]
    value: Tensor = torch.xlogy(p, p.clamp_min(torch.finfo(p.dtype).tiny)).sum()  # its gradient at p = 0 stays finite
    return value


def sample_entropy(t: Tensor) -> Term:
    """Entropy of softmax(t) in nats, mean over samples and pixels (DFQ, arXiv 2005.04136)."""
    log_p = t.log_softmax(1)
    return mean(-(log_p.exp() * log_p).sum(1))


def activation(features: Tensor | None) -> Term:
    """-mean |f| over the penultimate features (DAFL)."""
    assert features is not None, "the teacher's features were not collected"
    return _negative(mean(features.abs()))


def total_variation(x: Tensor) -> Term:
    """Mean over samples of the sum of L2 norms of the differences in 4 directions (DeepInversion's code)."""
    differences = (
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, 1:] - x[..., :-1, :-1],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    )
    per_sample = torch.stack([torch.linalg.vector_norm(difference.flatten(1), dim=1) for difference in differences])
    return mean(per_sample.sum(0))


def image_norm(x: Tensor) -> Term:
    """Mean over samples of ||x||_2."""
    return mean(torch.linalg.vector_norm(x.flatten(1), dim=1))


def contrastive(local: Tensor, whole: Tensor, rows: range, total: int, bank: Tensor, temperature: float) -> Term:
    """Each view of an image against the other views of all images, as a classification (CMI, arXiv 2105.08584).

    `local`, `whole` [b, D]: two views of the images `rows` out of `total`; `bank` [2, M, D]: views of earlier images.
    All have norm 1. CE over rows of local . whole^T / temperature, whose classes are the images: the mean over the
    batch, plus the mean over the bank. `whole` and its bank are constants, as in the public code.
    """
    views = torch.stack([local, whole.detach()])
    gathered = views.new_zeros(2, total, views.shape[2])
    gathered[:, rows.start : rows.stop] = views
    batch = (yield gathered.flatten()).view(gathered.shape)
    left, right = torch.cat([batch, bank], 1)
    values = F.cross_entropy(left @ right.detach().T / temperature, torch.arange(len(left), device=left.device),
                             reduction="none")  # fmt: skip
    return values[:total].mean() + (values[total:].mean() if bank.shape[1] else 0.0)


# Logged, never part of a loss: these values show when a generator collapses.


def entropy(t: Tensor) -> Term:
    """Entropy of the mean teacher prediction as a share of ln K: 1 is balanced, 0 is a single class."""
    value = yield from class_balance(t.detach())
    return -value / math.log(t.shape[1])


def top_class(t: Tensor) -> Term:
    """Share of the global batch that the teacher puts in its most frequent class."""
    classes = torch.arange(t.shape[1], device=t.device)  # F.one_hot checks the range on the host
    chosen = (t.detach().argmax(1).flatten()[:, None] == classes).to(t.dtype).sum(0)
    total = yield torch.cat([chosen, _num_positions(t)])
    return total[:-1].max() / total[-1]


def _negative(term: Term) -> Term:
    value = yield from term
    return -value


def _attended(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> attention map [B, h w], of norm 1 for each sample."""
    return F.normalize(maps.square().mean(1).flatten(1))


def _unexplained(
    count: Tensor, inputs: Tensor, squares: Tensor, targets: Tensor, products: Tensor, energy: Tensor
) -> Tensor:
    """1 - R^2 of the least squares fit of targets by inputs and an intercept, from sums over `count` rows.

    Sums of the inputs [I], of their products with each other [I, I], of the targets [O], of products of inputs with
    targets [I, O], and of all squared targets.
    """
    mean, target = inputs / count, targets / count
    among, between = squares / count - mean.outer(mean), products / count - mean.outer(target)
    tiny = torch.finfo(among.dtype).tiny
    # Of maps that hardly vary about a large mean the differences are rounding, which the mean squares bound.
    variance = (energy / count - target.square().sum()).maximum(RIDGE * energy / count)
    ridge = (RIDGE * among.diagonal().mean()).maximum(RIDGE**2 * (squares.diagonal() / count).mean()).clamp_min(tiny)
    solvable = among + ridge * torch.eye(len(among), dtype=among.dtype, device=among.device)
    weights, _ = torch.linalg.solve_ex(solvable, between)  # no check, for which the host would wait: NaN gives NaN
    explained: Tensor = (weights * between).sum()
    return 1 - explained / variance.clamp_min(tiny)


def _over_classes(p: Tensor) -> Tensor:
    """[B, K, ...] -> sums over all dimensions but the classes, [K]."""
    return p.sum([axis for axis in range(p.dim()) if axis != 1])


def _num_positions(t: Tensor) -> Tensor:
    """Number of predictions (samples, or pixels) of this process, [1]."""
    return t.new_full((1,), t.numel() / t.shape[1])
