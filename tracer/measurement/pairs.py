"""Two tensors, or what a trace holds instead of them, compared."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from tracer.measurement.padding import Padding, part_name, visible_part
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.tensors.difference import Difference
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.masks import describe_mask, visible_pair
from tracer.tensors.relations import Relation, relation_of
from tracer.tensors.tolerance import Tolerance
from tracer.text import brief

# A tensor, or what a trace holds in its place.
Tensor = torch.Tensor | Fingerprint
# Measures a pair without padded positions; None where none are known.
_Unpadded = Callable[[], Difference | None]

# Tensors of other lengths belong together if they have this many numbers in common, and are no
# further apart; else only their shapes can be told.
_FEWEST, _NEAR = 4, 0.25


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of a pair.

    Attributes:
        difference, limit, agrees, remarks, unpadded: as for a `Row`.
        whole: the difference at all positions; None where the pair is compared by its meaning.
        relation: as for a `Row`.
    """

    difference: Difference | None
    limit: float
    agrees: bool
    remarks: tuple[Remark, ...]
    unpadded: Difference | None = None
    whole: Difference | None = None
    relation: Relation | None = None


def measured(
    r: torch.Tensor,
    c: torch.Tensor,
    tolerance: Tolerance,
    unpadded: _Unpadded,
    *,
    is_mask: bool,
    may_be_longer: bool = True,
    relates: bool = True,
) -> Measured | None:
    """Compares two tensors, attention masks by what they let through.

    Args:
        may_be_longer: the candidate's may, as it is not kept from call to call.
        relates: known mistakes are looked for in what differs.

    Returns:
        None for masks whose forms do not compare.
    """
    visible = visible_pair(r, c) if is_mask else None
    if visible is not None:
        return by_meaning(r, c, Difference.of(*visible), is_same=_same(r, c))
    if r.shape != c.shape:
        if is_mask:
            return None
        apart = Measured(None, 0.0, False, (_shapes(r, c),))
        return (_where_both_are(r, c, tolerance) if may_be_longer else None) or apart
    try:
        whole = Difference.of(r, c)
    except (NotImplementedError, RuntimeError, TypeError) as error:  # a kind that PyTorch adds
        return Measured(None, 0.0, False, (Remark(RemarkKind.UNREADABLE, brief(error)),))
    return judged(r, c, whole, tolerance, unpadded, relates=relates)


def by_meaning(
    r: torch.Tensor, c: torch.Tensor, difference: Difference, *, is_same: bool
) -> Measured:
    """Two masks of which the difference of what they let through is known.

    Args:
        is_same: they hold the same values in the same form.
    """
    agrees = difference.mismatched == 0
    remarks = () if is_same else (Remark(RemarkKind.BY_MEANING),)
    if not agrees:
        remarks = (Remark(RemarkKind.MASKS, describe_mask(r), describe_mask(c)),)
    return Measured(difference, 0.0, agrees, remarks)


def judged(
    r: torch.Tensor,
    c: torch.Tensor,
    whole: Difference,
    tolerance: Tolerance,
    unpadded: _Unpadded,
    *,
    relates: bool = True,
) -> Measured:
    """Two tensors of which the difference is known; their values count where it is too large."""
    limit = tolerance.limit(r.dtype, c.dtype)
    if tolerance.agrees_within(limit, whole):
        return Measured(whole, limit, True, _remarks(whole, limit), whole=whole)
    part = unpadded()
    if part is not None and tolerance.agrees_within(limit, part):
        return Measured(part, limit, True, (_padded(whole),), part, whole)
    remarks = _remarks(whole, limit)
    if not remarks and r.dim() == 0:
        remarks = (Remark(RemarkKind.SCALARS, f"{r.item():.6g}", f"{c.item():.6g}"),)
    relation = relation_of(r, c) if relates else None
    if relation is not None:
        remarks = (*remarks, Remark(RemarkKind.RELATED, candidate=relation.value))
    return Measured(whole, limit, False, remarks, part, whole, relation)


def _where_both_are(r: torch.Tensor, c: torch.Tensor, tolerance: Tolerance) -> Measured | None:
    """Two tensors of other shapes; compared at the positions that both have where the candidate has
    more of them, as one that pads to a length of its own.

    Those are the first or the last ones, whichever fits better by far.
    """
    dim = _longer(r, c)
    if dim is None:
        return None
    length = r.shape[dim]
    parts = {"first": c.narrow(dim, 0, length), "last": c.narrow(dim, -length, length)}
    found = {where: Difference.of(r, part) for where, part in parts.items()}
    where, other = sorted(found, key=lambda each: _distance(found[each]))
    difference = found[where]
    is_chance = difference.count < _FEWEST or difference.reference_min == difference.reference_max
    agrees = tolerance.agrees(difference, r.dtype, c.dtype)
    is_near = _distance(difference) < min(_NEAR, _distance(found[other]) / 2)
    if is_chance or not (agrees or is_near):
        return None
    said = f"compared at the {where} {length} of {c.shape[dim]} positions"
    relation = None if agrees else relation_of(r, parts[where])
    return Measured(
        difference,
        tolerance.limit(r.dtype, c.dtype),
        agrees,
        (Remark(RemarkKind.FORM, candidate=said),),
        relation=relation,
    )


def _longer(r: torch.Tensor, c: torch.Tensor) -> int | None:
    """The dimension of positions that is longer in the candidate's; None if more than that differs.

    Batches and channels are none.
    """
    if r.dim() != c.dim() or not r.numel():
        return None
    unlike = [dim for dim in range(r.dim()) if r.shape[dim] != c.shape[dim]]
    if len(unlike) != 1 or r.shape[unlike[0]] > c.shape[unlike[0]]:
        return None
    positions = range(r.dim() - 1, r.dim())  # of tokens and the like
    if r.is_floating_point():
        positions = range(1, r.dim() - 1) if r.dim() > 2 else range(r.dim() - 1)
    return unlike[0] if unlike[0] in positions else None


def _distance(difference: Difference) -> float:
    """How far a pair is apart: by its error, or by the share of its numbers that are not equal."""
    if difference.mismatched:
        return difference.mismatched / difference.elements
    return difference.relative_peak


def estimated(
    r: Tensor, c: Tensor, tolerance: Tolerance, unpadded: _Unpadded, *, is_mask: bool
) -> Measured | None:
    """Compares a pair of which one or both are fingerprints.

    Returns:
        None for masks that differ: what they let through is not known.
    """
    left, right = (Fingerprint.of(v) if isinstance(v, torch.Tensor) else v for v in (r, c))
    if is_mask and not left.equals(right):
        return None
    limit = tolerance.limit(r.dtype, c.dtype)
    if left.shape != right.shape:
        return Measured(None, limit, False, (_shapes(r, c),))
    difference, remark = left.difference(right), Remark(RemarkKind.ESTIMATED)
    if tolerance.agrees_within(limit, difference):
        return Measured(difference, limit, True, (remark,))
    part = unpadded()
    if part is not None and tolerance.agrees_within(limit, part):
        return Measured(part, limit, True, (_padded(difference), remark), part)
    return Measured(difference, limit, False, (remark,), part)


def difference_at(place: tuple[int, torch.Tensor], r: Tensor, c: Tensor) -> Difference | None:
    """The difference at the visible positions along a dimension; None if a fingerprint lacks it."""
    if isinstance(r, torch.Tensor) and isinstance(c, torch.Tensor):
        return Difference.of(visible_part(r, *place), visible_part(c, *place))
    parts = [
        Fingerprint.of(visible_part(value, *place))
        if isinstance(value, torch.Tensor)
        else value.at(part_name(*place))
        for value in (r, c)
    ]
    if parts[0] is None or parts[1] is None:
        return None
    return parts[0].difference(parts[1])


def _same(r: torch.Tensor, c: torch.Tensor) -> bool:
    return r.dtype == c.dtype and r.device == c.device and torch.equal(r, c)


def _shapes(r: Tensor, c: Tensor) -> Remark:
    return Remark(RemarkKind.SHAPES, str(list(r.shape)), str(list(c.shape)))


def _padded(difference: Difference) -> Remark:
    return Remark(RemarkKind.PADDED, figure=difference.peir)


def _remarks(difference: Difference, limit: float) -> tuple[Remark, ...]:
    counts = difference.reference_nonfinite, difference.candidate_nonfinite
    if counts != (0, 0):
        return (Remark(RemarkKind.NONFINITE, *counts),)
    if difference.mismatched == 0 and limit < difference.relative_peak <= 4 * limit:
        return (Remark(RemarkKind.RELATIVE_L2, figure=difference.relative_l2),)
    return ()


def unpadded_difference(
    paddings: Iterable[Padding], r: Tensor, c: Tensor, tolerance: Tolerance, *, is_kept: bool
) -> Difference | None:
    """The difference without padded positions; None where none are known.

    What a model computes at a padded position depends on the attention implementation (a row of
    the mask that hides everything has no defined result), and nothing else may depend on it. Where
    several dimensions may be those of positions, it is the one along which least is left.

    Args:
        is_kept: whether it is of a cache, which may have kept the last positions only.
    """
    found = []
    for padding in paddings:
        for place in padding.places(tuple(r.shape), is_kept=is_kept):
            difference = difference_at(place, r, c)
            if difference is not None and tolerance.agrees(difference, r.dtype, c.dtype):
                return difference
            if difference is not None:
                found.append(difference)
    return min(found, key=lambda difference: difference.relative_peak, default=None)
