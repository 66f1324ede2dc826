"""Values of one side found again among those of the other, in whatever form they come.

A candidate may work head by head, in halves, on permuted dimensions, with a factor folded in or a
sign turned, and it may hide positions by another number. So each value is looked for among the
other side's values, their halves and their slices along each dimension. Norm, sum and extremes find
the pairs; each is then confirmed element by element.
"""

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tracer.measurement.padding import Padding
from tracer.tensors.kinds import plain

Tensor = torch.Tensor

# Fewer elements, or fewer different ones, may be alike by chance.
_FEWEST = 4
# Slices are taken along dimensions of heads, groups and sequences up to this length.
_MOST_SLICES = 128
_MOST_DIMENSIONS = 5
_MOST_CONFIRMED = 32
_SAMPLE = 64
# An additive mask hides by less than this; how much less is no matter.
_HIDDEN = -60.0


@dataclass(frozen=True)
class Match:
    """A value that was found on the other side.

    Attributes:
        other: its index there.
        factor: it is that many times the other.
        is_whole: it is all of the other, not a half or a slice of it.
        is_ordered: its elements come in the same order.
    """

    other: int
    factor: float
    is_whole: bool
    is_ordered: bool

    @property
    def is_exact(self) -> bool:
        """Whether it has no factor."""
        return self.factor == 1.0


def match(
    values: Sequence[Tensor], others: Sequence[Tensor], limit: float, paddings: Sequence[Padding]
) -> list[list[Match]]:
    """Finds each value among others.

    Args:
        limit: how far two elements may lie apart, as a part of the value's scale.
        paddings: positions that do not count.

    Returns:
        For each value what it was found as, best first.
    """
    whole = _Catalogue([_plain(other) for other in others])
    shown = _Catalogue([_shown(_plain(other), paddings) for other in others])
    found = []
    for value in values:
        own = _plain(value)
        matches = whole.find(own, limit)
        if not any(each.is_exact for each in matches):
            # Only what is visible may be alike.
            matches += shown.find(_shown(own, paddings), limit)
        found.append(sorted(set(matches), key=_rank))
    return found


def factor_between(value: Tensor, other: Tensor, limit: float) -> float | None:
    """The constant that a value is another one multiplied by; None if there is none."""
    if value.shape != other.shape:
        return None
    value, other = _plain(value), _plain(other)
    denominator = float((other * other).sum())
    if not _is_informative(other) or not 0.0 < denominator < math.inf:
        return None
    factor = float((value * other).sum()) / denominator
    return factor if factor and _is_close(value, other, factor, limit) else None


def is_same(value: Tensor, other: Tensor, limit: float) -> bool:
    """Whether two values hold the same elements in the same order, in whatever shape."""
    if value.numel() != other.numel():
        return False
    return _is_close(_plain(value).flatten(), _plain(other).flatten(), 1.0, limit)


def is_rearranged(value: Tensor, other: Tensor, limit: float) -> bool:
    """Whether two values hold the same elements, as their moments tell, in whatever order."""
    if value.numel() != other.numel():
        return False
    one, two = (_features(_plain(each).reshape(1, -1))[0] for each in (value, other))
    return bool(torch.allclose(one, two, rtol=limit, atol=limit * float(two[0])))


def _rank(match: Match) -> tuple[bool, bool, bool]:
    return not match.is_exact, not match.is_whole, not match.is_ordered


@dataclass(frozen=True)
class _Part:
    """All of a value, or one of its parts along a dimension."""

    other: int
    dim: int
    parts: int
    position: int


class _Catalogue:
    """Values with their halves and slices, to be looked up by their moments."""

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = values
        parts: list[_Part] = []
        features = [torch.zeros(0, 4, dtype=torch.float64)]
        for other, value in enumerate(values):
            for dim, count, rows in _divided(value):
                parts += [_Part(other, dim, count, position) for position in range(count)]
                features.append(_features(rows))
        self._parts = parts
        self._features = torch.cat(features)
        self._sizes = torch.tensor([values[p.other].numel() // p.parts for p in parts])

    def find(self, value: Tensor, limit: float) -> list[Match]:
        """What a value is found as."""
        if not self._parts or not _is_informative(value):
            return []
        own = _features(value.reshape(1, -1))[0]
        norm, moments = own[0], own[1:] / own[0]
        others = self._features[:, 1:] / self._features[:, :1]
        near = 4 * limit + 1e-6
        turned = -others[:, [0, 2, 1]]
        alike = self._sizes == value.numel()
        hits = []
        for sign, candidates in ((1.0, others), (-1.0, turned)):
            apart = (candidates - moments).abs().amax(dim=1)
            for index in (alike & (apart <= near)).nonzero().flatten().tolist():
                ratio = sign * float(norm / self._features[index, 0])
                hits.append((abs(ratio - 1.0) > 1e-3, self._parts[index].parts > 1, index, ratio))
        found = []
        for _, _, index, ratio in sorted(hits)[:_MOST_CONFIRMED]:
            part = self._parts[index]
            confirmed = _confirm(value, self._part(part), ratio, limit)
            if confirmed is not None:
                found.append(Match(part.other, confirmed[0], part.parts == 1, confirmed[1]))
        return found

    def _part(self, part: _Part) -> Tensor:
        value = self._values[part.other]
        if part.parts == 1:
            return value
        length = value.shape[part.dim] // part.parts
        return value.narrow(part.dim, part.position * length, length)


def _divided(value: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yields a value whole, in halves and in slices, each as (dimension, parts, their rows)."""
    yield 0, 1, value.reshape(1, -1)
    for dim, length in enumerate(value.shape):
        rows = value.movedim(dim, 0)
        if length > 2 and length % 2 == 0:
            yield dim, 2, rows.reshape(2, -1)
        if 1 < length <= _MOST_SLICES and value.numel() // length >= _FEWEST:
            yield dim, length, rows.reshape(length, -1)


def _features(rows: Tensor) -> Tensor:
    """Norm, sum, smallest and largest of each row, [rows, 4]."""
    finite = torch.nan_to_num(rows, 0.0, 0.0, 0.0)
    if not finite.shape[1]:
        return torch.zeros(len(rows), 4, dtype=torch.float64)
    norms = torch.linalg.vector_norm(finite, dim=1)
    return torch.stack([norms, finite.sum(1), finite.amin(1), finite.amax(1)], dim=1)


def _confirm(value: Tensor, other: Tensor, ratio: float, limit: float) -> tuple[float, bool] | None:
    """The factor, and whether the elements come in the same order; None if they differ."""
    factors = [1.0] if abs(ratio - 1.0) <= 4 * limit else []
    factors += [ratio] if abs(ratio - 1.0) > limit and _has_levels(value) else []
    flat = value.flatten()
    sample = torch.linspace(0, len(flat) - 1, min(_SAMPLE, len(flat))).long()
    for factor in factors:
        for is_ordered, own, arranged in _arrangements(value, other):
            near = _is_close(_at(own, sample), _at(arranged, sample), factor, 8 * limit)
            if near and _is_close(own.reshape(-1), arranged.reshape(-1), factor, limit):
                return factor, is_ordered
    return None


def _arrangements(value: Tensor, other: Tensor) -> Iterator[tuple[bool, Tensor, Tensor]]:
    """Both values flat, then with the dimensions of the one and of the other permuted."""
    value, other = value.squeeze(), other.squeeze()
    yield True, value, other
    for turned, is_other in ((other, True), (value, False)):
        if not 1 < turned.dim() <= _MOST_DIMENSIONS:
            continue
        fixed = value if is_other else other
        for order in itertools.islice(itertools.permutations(range(turned.dim())), 1, None):
            permuted = turned.permute(order)
            if _ends(fixed) <= _ends(permuted):
                yield False, *((value, permuted) if is_other else (permuted, other))


def _ends(value: Tensor) -> set[int]:
    """Where dimensions end, in elements from the last: one shape only splits another if these are
    among its own."""
    return set(itertools.accumulate(reversed(value.shape), operator.mul))


def _at(value: Tensor, positions: Tensor) -> Tensor:
    """Elements by their place in row-major order."""
    return value[torch.unravel_index(positions, value.shape)] if value.dim() else value.reshape(1)


def _is_close(value: Tensor, other: Tensor, factor: float, limit: float) -> bool:
    scaled = other * factor
    finite = scaled.isfinite()
    if not torch.equal(finite, value.isfinite()):
        return False
    if not bool(finite.all()):
        same = (value == scaled) | (value.isnan() & scaled.isnan())
        if not bool((same | finite).all()):
            return False
        value, scaled = value[finite], scaled[finite]
    allowed = limit * (_scale(scaled) + scaled.abs())
    return bool(((value - scaled).abs() <= allowed).all())


def _scale(value: Tensor) -> float:
    """The largest magnitude of what a mask has not hidden."""
    visible = value[value > _HIDDEN]
    sizes = (visible if len(visible) else value).abs()
    return float(sizes.max()) if sizes.numel() else 0.0


def _is_informative(value: Tensor) -> bool:
    """Whether a value is no constant and long enough not to be alike by chance."""
    return value.numel() >= _FEWEST and bool((value != value.flatten()[0]).any())


def _has_levels(value: Tensor) -> bool:
    """Whether there are three different elements: of two, one is always a multiple of another."""
    return bool(((value != value.min()) & (value != value.max())).any())


def _plain(value: Tensor) -> Tensor:
    """The elements in float64, in a dense layout on the CPU; complex ones as pairs."""
    value = plain(value)
    if value.is_complex():
        value = torch.view_as_real(value)
    return value.to("cpu", torch.float64)


def _shown(value: Tensor, paddings: Sequence[Padding]) -> Tensor:
    """A value without what is at padded positions, and with one number where a mask hides."""
    value = value.clamp(min=_HIDDEN) if value.numel() and bool((value < _HIDDEN).any()) else value
    for padding in paddings:
        for dim, visible in padding.places(tuple(value.shape)):
            kept = visible.to("cpu")
            moved = value.movedim(dim, 1) if dim else value
            kept = kept.reshape(*kept.shape, *[1] * (moved.dim() - kept.dim()))
            moved = moved.masked_fill(~kept, 0.0)
            value = moved.movedim(1, dim) if dim else moved
    return value
