"""Two tensors, or what a trace holds instead of them, compared."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tracer.measurement.padding import part_name, visible_part
from tracer.measurement.rows import BY_MEANING, ESTIMATED
from tracer.tensors.difference import Difference
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.masks import describe_mask, visible_pair
from tracer.tensors.tolerance import Tolerance

# A tensor, or what a trace holds in its place.
Tensor = torch.Tensor | Fingerprint
# Measures a pair without padded positions; None where none are known.
_Unpadded = Callable[[], Difference | None]


@dataclass(frozen=True)
class Measured:
    """What was found of a pair.

    Attributes:
        difference, limit, agrees, note, unpadded: as for a `Row`.
        whole: the difference at all positions; None where the pair is compared by its meaning.
    """

    difference: Difference | None
    limit: float
    agrees: bool
    note: str
    unpadded: Difference | None = None
    whole: Difference | None = None


def measured(
    r: torch.Tensor, c: torch.Tensor, tolerance: Tolerance, unpadded: _Unpadded, *, is_mask: bool
) -> Measured | None:
    """Compares two tensors, attention masks by what they let through.

    Returns:
        None for masks whose forms do not compare.
    """
    visible = visible_pair(r, c) if is_mask else None
    if visible is not None:
        difference = Difference.of(*visible)
        agrees = difference.mismatched == 0
        note = "" if agrees and _same(r, c) else BY_MEANING
        if not agrees:
            note = f"{describe_mask(r)}; candidate {describe_mask(c)}"
        return Measured(difference, 0.0, agrees, note)
    if r.shape != c.shape:
        return None if is_mask else Measured(None, 0.0, False, _shapes(r, c))
    whole = Difference.of(r, c)
    limit = tolerance.limit(r.dtype, c.dtype)
    if tolerance.agrees(whole, r.dtype, c.dtype):
        return Measured(whole, limit, True, _note(whole, limit), whole=whole)
    part = unpadded()
    if part is not None and tolerance.agrees(part, r.dtype, c.dtype):
        return Measured(part, limit, True, _left_out(whole), part, whole)
    note = _note(whole, limit)
    if not note and r.dim() == 0:
        note = f"{r.item():.6g}; candidate {c.item():.6g}"
    return Measured(whole, limit, False, note, part, whole)


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
        return Measured(None, limit, False, _shapes(r, c))
    difference = left.difference(right)
    if tolerance.agrees(difference, r.dtype, c.dtype):
        return Measured(difference, limit, True, ESTIMATED)
    part = unpadded()
    if part is not None and tolerance.agrees(part, r.dtype, c.dtype):
        return Measured(part, limit, True, f"{_left_out(difference)}; {ESTIMATED}", part)
    return Measured(difference, limit, False, ESTIMATED, part)


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


def _shapes(r: Tensor, c: Tensor) -> str:
    return f"shape {list(r.shape)}; candidate {list(c.shape)}"


def _left_out(difference: Difference) -> str:
    return f"at padded positions PEIR {difference.peir:.3g}, left out"


def _note(difference: Difference, limit: float) -> str:
    if difference.reference_nonfinite or difference.candidate_nonfinite:
        return (
            f"{difference.reference_nonfinite} non-finite elements; "
            f"candidate {difference.candidate_nonfinite}"
        )
    if difference.mismatched == 0 and limit < difference.relative_peak <= 4 * limit:
        return f"relative L2 {difference.relative_l2:.3g}"
    return ""
