"""How a value that differs is the reference's in another form: scaled, permuted, rotated.

>>> relation_of(reference, reference[:, order])
Relation.PERMUTED

A model may be laid out differently inside and compute the same: a norm folded into the projection
behind it, smoothed channels, heads in another order, a residual stream that is turned. What such a
value is of the reference's is told from the value alone; that it is made good again further on is
for the verdict to see.
"""

from collections.abc import Callable, Iterator
from enum import StrEnum

import torch

from tracer.tensors.kinds import plain

# Rows that are looked at, and the least that tell a relation from chance.
_MOST_ROWS, _LEAST_ROWS = 96, 4
# What a relation leaves unexplained, in relative L2: rounding, which folding multiplies.
_RESIDUAL = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


class Relation(StrEnum):
    """What a candidate's value is of the reference's."""

    SCALED = "scaled by a constant"
    PER_CHANNEL = "scaled or shifted per channel"
    PERMUTED = "permuted"
    ROTATED = "rotated"


def relation_of(reference: torch.Tensor, candidate: torch.Tensor) -> Relation | None:
    """The relation of a pair of one shape; None where none is found, or too little tells it.

    Args:
        reference, candidate: floats, with channels in the last dimension, in dimension 1 (as
            convolutions have them) or in heads, [batch, heads, sequence, head_dim].
    """
    if reference.shape != candidate.shape or reference.dim() < 2 or not reference.numel():
        return None
    if not (reference.is_floating_point() and candidate.is_floating_point()):
        return None
    limit = max(_RESIDUAL.get(t.dtype, 5e-2) for t in (reference, candidate))
    r, c = plain(reference), plain(candidate)
    if r.shape != c.shape or r.dim() < 2 or not r.is_floating_point():
        return None  # of a kind whose values have no such layout, or are bytes
    for rows in _as_rows(r, c.to(r.device)):
        if not all(bool(torch.isfinite(each).all()) for each in rows):
            return None
        for relation, holds in _RELATIONS.items():
            if holds(*rows, limit):
                return relation
    return None


def _as_rows(r: torch.Tensor, c: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both as [rows, channels] in float64, in each of the ways in which channels may lie."""
    layouts: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda t: t.flatten(0, -2)]
    if r.dim() == 4:
        layouts += [
            lambda t: t.transpose(1, 2).flatten(2).flatten(0, 1),
            lambda t: t.movedim(1, -1).flatten(0, -2),
        ]
    elif r.dim() == 3:
        layouts.append(lambda t: t.transpose(1, 2).flatten(0, 1))
    for layout in layouts:
        rows = layout(r), layout(c)
        count = rows[0].shape[0]
        if count >= _LEAST_ROWS:
            step = max(count // _MOST_ROWS, 1)
            yield rows[0][::step][:_MOST_ROWS].double(), rows[1][::step][:_MOST_ROWS].double()


def _is_small(error: torch.Tensor, whole: torch.Tensor, limit: float) -> bool:
    norm = torch.linalg.vector_norm(whole)
    return bool(norm > 0) and bool(torch.linalg.vector_norm(error) <= limit * norm)


def _is_scaled(r: torch.Tensor, c: torch.Tensor, limit: float) -> bool:
    square = (r * r).sum()
    return bool(square > 0) and _is_small(c - (r * c).sum() / square * r, c, limit)


def _is_affine_per_channel(r: torch.Tensor, c: torch.Tensor, limit: float) -> bool:
    """By least squares in each channel; the fit has two numbers of each, so that a few more rows
    than two must bear it out."""
    if r.shape[0] < 2 * _LEAST_ROWS:
        square = (r * r).sum(0)
        factor = torch.where(square > 0, (r * c).sum(0) / square.clamp(min=1e-300), 0.0)
        return r.shape[1] > 1 and _is_small(c - factor * r, c, limit)
    centred_r, centred_c = r - r.mean(0), c - c.mean(0)
    square = (centred_r * centred_r).sum(0)
    factor = torch.where(square > 0, (centred_r * centred_c).sum(0) / square.clamp(min=1e-300), 0.0)
    return r.shape[1] > 1 and _is_small(centred_c - factor * centred_r, centred_c, limit)


def _is_permuted(r: torch.Tensor, c: torch.Tensor, limit: float) -> bool:
    """Channels in another order, and perhaps of another sign, found by their norms."""
    if r.shape[1] < 2:
        return False
    orders = [torch.linalg.vector_norm(t, dim=0).argsort() for t in (r, c)]
    moved = r[:, orders[0]], c[:, orders[1]]
    return _is_small(moved[1] - moved[0], c, limit)


def _is_rotated(r: torch.Tensor, c: torch.Tensor, limit: float) -> bool:
    """An orthogonal matrix leaves all products of rows as they are."""
    if r.shape[1] < 2:
        return False
    products = r @ r.T, c @ c.T
    return _is_small(products[1] - products[0], products[0], limit)


_RELATIONS: dict[Relation, Callable[[torch.Tensor, torch.Tensor, float], bool]] = {
    Relation.SCALED: _is_scaled,
    Relation.PERMUTED: _is_permuted,
    Relation.PER_CHANNEL: _is_affine_per_channel,
    Relation.ROTATED: _is_rotated,
}
