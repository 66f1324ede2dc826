"""The statistics of one pair of tensors, from one pass over both.

>>> reference = torch.tensor([0.0, 1.0, 2.0, 4.0])
>>> difference = Difference.of(reference, reference + torch.tensor([0.0, 0.5, 0.0, 0.0]))
>>> difference.mean, difference.max, difference.peir, difference.peak_index
(0.125, 0.5, 0.125, 1)

A `Difference` holds sums and extremes only, so two of them merge: the statistics of a batch, a
chunk or a rank add up to those of the whole. The pass runs over chunks that stay in cache: float32
arithmetic inside a chunk, float64 across chunks, and float64 throughout where float32 would lose
the answer (cancellation, overflow, underflow, non-finite values, integers, complex numbers).

A huge value that both sides have alike (the fill of a mask, or of logits of tokens that do not
exist) says nothing of the others, next to which any error of theirs is small: what is relative is
then at least what it is of the rest. It is looked for only in a tensor of which a few elements,
taken at equal distances, show that there may be one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tracer.tensors.chunks import chunks, comparable
from tracer.tensors.enqueued import EXACT_CHUNK, Enqueued, exact_sums
from tracer.tensors.exact import fits_float32, to_float64
from tracer.tensors.fills import may_have_fills, shows_fills, without_fills
from tracer.tensors.kernels import Array, Chooser, Pass, Sums, by_numpy

# Elements per chunk: two float32 operands and the buffer of their difference stay in a 2 MiB L2.
CHUNK = 131_072
# The compiled pass reads each element once, in blocks of its own.
COMPILED_CHUNK = 8 * CHUNK

# Squares of float32 values outside this range overflow or lose bits to denormals.
_SAFE_LOW, _SAFE_HIGH = 1e-15, 1e16

# How many numbers `quick_sums` and `exact_sums` give.
_QUICK, _EXACT = len(Sums._fields), 14

_CHOOSER = Chooser()

# Below this ratio of variance to squared mean, float32 sums have cancelled too many digits.
_CANCELLED = 1e-2


@dataclass(frozen=True, slots=True, repr=False)
class Difference:
    """Mergeable statistics of `reference - candidate`, over pairs that are finite on both.

    Attributes:
        elements: number of pairs, finite or not.
        count: number of pairs that are finite on both sides; every statistic is over these.
        sum_abs, sum_square: sums of |d| and d^2, with d = reference - candidate.
        min_abs, max_abs: extremes of |d| (inf and -inf when `count` is 0).
        reference_min, reference_max: extremes of the reference (inf and -inf when `count` is 0);
            of real and imaginary parts together when it is complex.
        reference_square, candidate_square, product: sums of r^2, c^2 and r*c.
        reference_nonfinite, candidate_nonfinite: number of NaN and infinite elements on each side.
        mismatched: integers and booleans: elements that are not equal; otherwise: non-finite
            elements without an equal on the other side (NaN equals NaN, inf equals inf).
        peak_index: flat index of the largest |d| in the row-major order of the pairs, -1 if none.
        rest: the statistics without fills: values far beyond all others that both sides have alike.
            None where there are none.

    Squares of float64 values beyond 1e154 overflow: `stddev` is then infinite, and NaN stands for
    those of `sqnr`, `cosine` and `relative_l2` that cannot be known. Extremes and PEIR still hold.
    """

    elements: int = 0
    count: int = 0
    sum_abs: float = 0.0
    sum_square: float = 0.0
    min_abs: float = math.inf
    max_abs: float = -math.inf
    reference_min: float = math.inf
    reference_max: float = -math.inf
    reference_square: float = 0.0
    candidate_square: float = 0.0
    product: float = 0.0
    reference_nonfinite: int = 0
    candidate_nonfinite: int = 0
    mismatched: int = 0
    peak_index: int = -1
    rest: "Difference | None" = None

    @classmethod
    def of(cls, reference: torch.Tensor, candidate: torch.Tensor) -> "Difference":
        """Measures a pair of tensors of one shape, of any dtype and any strides.

        The tensors may live on different devices; the pass then runs on the reference's.

        Raises:
            ShapeMismatchError: the shapes differ; nothing is ever broadcast.
            UsageError: a tensor lies on the meta device and holds no values.
        """
        if (found := _of_usual(reference, candidate)) is not None:
            return found
        reference, candidate = comparable(reference, candidate)
        on_cpu = reference.device.type == "cpu"
        if not on_cpu:
            enqueued = Enqueued.of(reference, candidate)
            if (found := cls.read(enqueued, enqueued.numbers.tolist())) is not None:
                return found
        if on_cpu and reference.numel() <= CHUNK and (same := _of_equal(reference, candidate)):
            return same
        fits = on_cpu and fits_float32(reference.dtype) and fits_float32(candidate.dtype)
        one_pass = _CHOOSER.chosen(reference.numel()) if fits else by_numpy
        size = EXACT_CHUNK if not on_cpu else CHUNK if one_pass is by_numpy else COMPILED_CHUNK
        result: Difference | None = None
        for r, c in chunks(reference, candidate, size):
            part = _of_float32(r, c, one_pass) if fits else _of_any(r, c)
            result = part if result is None else result.merge(part)
        result = result or cls()
        if may_have_fills(reference, candidate, result.max_abs, _largest(result)):
            return replace(result, rest=_rest(reference, candidate))
        return result

    @classmethod
    def read(cls, enqueued: Enqueued, numbers: Sequence[float]) -> "Difference | None":
        """The difference that an accelerator has computed, from its numbers on the host.

        Returns:
            None where only the values tell: some are not finite, or there may be fills, or squares
            are beyond what float32 holds, or cancel. `Difference.of` looks at them.
        """
        result, place = cls(), 0
        for elements in enqueued.elements:
            width = _QUICK if enqueued.is_quick else _EXACT
            own, place = numbers[place : place + width], place + width
            part = _of_quick(elements, own) if enqueued.is_quick else _of_exact(elements, own)
            if part is None:
                return None
            result = result.merge(part)
        sample = np.array(numbers[place:])
        is_hiding = enqueued.is_sampled and shows_fills(sample, result.max_abs, _largest(result))
        return None if is_hiding else result

    def merge(self, other: "Difference") -> "Difference":
        """The statistics of these pairs followed by the other's, as one pass would give them."""
        if self.elements == 0:
            return other
        other_is_peak = other.max_abs > self.max_abs
        return Difference(
            elements=self.elements + other.elements,
            count=self.count + other.count,
            sum_abs=self.sum_abs + other.sum_abs,
            sum_square=self.sum_square + other.sum_square,
            min_abs=min(self.min_abs, other.min_abs),
            max_abs=max(self.max_abs, other.max_abs),
            reference_min=min(self.reference_min, other.reference_min),
            reference_max=max(self.reference_max, other.reference_max),
            reference_square=self.reference_square + other.reference_square,
            candidate_square=self.candidate_square + other.candidate_square,
            product=self.product + other.product,
            reference_nonfinite=self.reference_nonfinite + other.reference_nonfinite,
            candidate_nonfinite=self.candidate_nonfinite + other.candidate_nonfinite,
            mismatched=self.mismatched + other.mismatched,
            peak_index=self.elements + other.peak_index if other_is_peak else self.peak_index,
            rest=(self.rest or self).merge(other.rest or other)
            if self.rest or other.rest
            else None,
        )

    def __repr__(self) -> str:
        statistics = ", ".join(
            f"{name}={getattr(self, name):.3g}" for name in ("mean", "min", "max", "stddev", "peir")
        )
        return f"Difference({statistics}, mismatched={self.mismatched}, elements={self.elements})"

    @property
    def mean(self) -> float:
        """Mean of |d|; 0 without finite pairs."""
        return self.sum_abs / self.count if self.count else 0.0

    @property
    def min(self) -> float:
        """Smallest |d|; 0 without finite pairs."""
        return self.min_abs if self.count else 0.0

    @property
    def max(self) -> float:
        """Largest |d|; 0 without finite pairs."""
        return self.max_abs if self.count else 0.0

    @property
    def stddev(self) -> float:
        """Population standard deviation of |d|: sqrt(E[d^2] - E[|d|]^2)."""
        if not self.count:
            return 0.0
        variance = self.sum_square / self.count - self.mean * self.mean
        return math.inf if math.isnan(variance) else math.sqrt(max(variance, 0.0))

    @property
    def interval(self) -> float:
        """max(reference) - min(reference), without fills; 0 without finite pairs."""
        if self.rest is not None:
            return self.rest.interval
        return self.reference_max - self.reference_min if self.count else 0.0

    @property
    def peir(self) -> float:
        """Peak error to interval ratio, max |d| / interval.

        0 for equal tensors; infinite where a constant reference is missed.
        """
        if not self.count or self.max_abs == 0.0:
            return 0.0
        if self.rest is not None:
            return max(replace(self, rest=None).peir, self.rest.peir)
        interval = self.reference_max - self.reference_min
        if math.isinf(interval):
            return 0.5 * self.max_abs / (0.5 * self.reference_max - 0.5 * self.reference_min)
        return self.max_abs / interval if interval > 0.0 else math.inf

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise ratio in dB, 10 log10(sum r^2 / sum d^2)."""
        if self.rest is not None:
            return min(replace(self, rest=None).sqnr, self.rest.sqnr)
        if self.sum_square == 0.0:
            return math.inf
        if self.reference_square == 0.0:
            return -math.inf
        return 10.0 * (math.log10(self.reference_square) - math.log10(self.sum_square))

    @property
    def cosine(self) -> float:
        """Cosine similarity; 1 for two zero vectors, 0 where only one of them is zero."""
        if self.rest is not None:
            return self.rest.cosine
        if self.reference_square == 0.0 or self.candidate_square == 0.0:
            return 1.0 if self.reference_square == self.candidate_square else 0.0
        norm = math.sqrt(self.reference_square) * math.sqrt(self.candidate_square)
        if math.isinf(norm):
            return math.nan
        return max(-1.0, min(1.0, self.product / norm))

    @property
    def relative_l2(self) -> float:
        """sqrt(sum d^2 / sum r^2)."""
        if self.rest is not None:
            return max(replace(self, rest=None).relative_l2, self.rest.relative_l2)
        if self.sum_square == 0.0:
            return 0.0
        if self.reference_square == 0.0:
            return math.inf
        return math.sqrt(self.sum_square) / math.sqrt(self.reference_square)

    @property
    def relative_peak(self) -> float:
        """max |d| over the larger of the reference's interval and magnitude.

        It equals PEIR unless the reference varies little about a value far from zero, where the
        rounding of that value alone would make PEIR large.
        """
        if not self.count or self.max_abs == 0.0:
            return 0.0
        if self.rest is not None:
            return max(replace(self, rest=None).relative_peak, self.rest.relative_peak)
        low, high = self.reference_min, self.reference_max
        if math.isinf(high - low):
            return self.peir
        scale = max(high - low, abs(low), abs(high))
        return self.max_abs / scale if scale > 0.0 else math.inf


def _of_usual(r: torch.Tensor, c: torch.Tensor) -> Difference | None:
    """The difference of two of what is compared most, in few steps: float32 on the CPU, and small.

    None where it takes more.
    """
    if not (type(r) is type(c) is torch.Tensor and r.dtype is c.dtype is torch.float32):
        return None
    if not (r.is_cpu and c.is_cpu and 0 < r.numel() <= CHUNK):
        return None
    if r.requires_grad or c.requires_grad:
        r, c = r.detach(), c.detach()
    try:
        reference, candidate = r.numpy(), c.numpy()
    except (RuntimeError, TypeError):  # sparse, nested, of another sign than what is stored
        return None
    if reference.shape != candidate.shape:
        return None
    reference, candidate = reference.reshape(-1), candidate.reshape(-1)
    sums = by_numpy(reference, candidate)
    if sums is None or not _is_safe(sums):
        return None
    found = _of_safe(reference, candidate, sums)
    if found is None or may_have_fills(r, c, found.max_abs, _largest(found)):
        return None
    return found


def _of_equal(r: torch.Tensor, c: torch.Tensor) -> Difference | None:
    """Of equal values, as masks, positions and most arguments are; None where they are not, or some
    are not finite, or squares are beyond what float32 holds."""
    if r.dtype != c.dtype or r.is_complex() or not torch.equal(r, c) or not r.numel():
        return None
    values = (r.float() if fits_float32(r.dtype) else r.double()).numpy().reshape(-1)
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    if not (_SAFE_LOW < largest < _SAFE_HIGH or largest == 0.0):
        return None
    square = float(np.dot(values, values))
    return Difference(
        elements=values.size,
        count=values.size,
        min_abs=0.0,
        max_abs=0.0,
        reference_min=low,
        reference_max=high,
        reference_square=square,
        candidate_square=square,
        product=square,
        peak_index=0,
    )


def _of_float32(r: torch.Tensor, c: torch.Tensor, one_pass: Pass) -> Difference:
    """One chunk on the CPU in float32."""
    if r.dtype is c.dtype is torch.bfloat16 and one_pass is not by_numpy:
        sums = one_pass(*(t.view(torch.uint16).numpy() for t in (r, c)))
        if sums is None or not _is_safe(sums) or _has_cancelled(r.numel(), sums):
            return _of_float32(r, c, by_numpy)
        return _of_sums(r.numel(), sums) or _of_any(r, c)
    reference, candidate = r.float().numpy(), c.float().numpy()
    sums = one_pass(reference, candidate)
    if sums is None or not _is_safe(sums):
        return _of_any(r, c)
    return _of_safe(reference, candidate, sums) or _of_any(r, c)


def _of_safe(reference: Array, candidate: Array, sums: Sums) -> Difference | None:
    """One chunk from its sums, in float64 where float32 has cancelled; None as for `_of_sums`."""
    if _has_cancelled(reference.size, sums):
        exact = np.abs(np.subtract(reference, candidate)).astype(np.float64)
        sums = sums._replace(sum_abs=float(exact.sum()), sum_square=float(np.dot(exact, exact)))
    return _of_sums(reference.size, sums)


def _of_quick(elements: int, numbers: Sequence[float]) -> Difference | None:
    """One chunk, from its `quick_sums`; None where float32 does not hold the answer."""
    sums = Sums._make((*numbers[:-1], int(numbers[-1])))
    is_whole = _is_safe(sums) and not _has_cancelled(elements, sums)
    return _of_sums(elements, sums) if is_whole else None


def _of_sums(elements: int, sums: Sums) -> Difference | None:
    """One chunk without fault; None where the product of both has cancelled."""
    squares = sums.reference_square, sums.candidate_square
    if min(squares) < _CANCELLED * max(squares):
        return None
    return Difference(
        elements=elements,
        count=elements,
        sum_abs=sums.sum_abs,
        sum_square=sums.sum_square,
        min_abs=sums.min_abs,
        max_abs=sums.max_abs,
        reference_min=sums.reference_min,
        reference_max=sums.reference_max,
        reference_square=squares[0],
        candidate_square=squares[1],
        product=0.5 * (squares[0] + squares[1] - sums.sum_square),
        peak_index=sums.peak,
    )


def _has_cancelled(elements: int, sums: Sums) -> bool:
    """Whether the variance of |d| is too small a part of its square to be known from the sums."""
    mean_square = (sums.sum_abs / elements) ** 2
    return sums.sum_square / elements - mean_square < _CANCELLED * mean_square


def _is_safe(sums: Sums) -> bool:
    """Whether no square in them overflows, or loses bits to denormals."""
    magnitude = max(abs(sums.reference_min), abs(sums.reference_max))
    if not (magnitude < _SAFE_HIGH and sums.max_abs < _SAFE_HIGH):  # nor is any of them NaN
        return False
    low = min(magnitude or 1.0, sums.max_abs or 1.0)
    return low > _SAFE_LOW


def _of_any(r: torch.Tensor, c: torch.Tensor) -> Difference:
    """One chunk of any dtype on any device, in float64, with one transfer to the host."""
    return _of_exact(r.numel(), exact_sums(r, c).tolist())


def _of_exact(elements: int, numbers: Sequence[float]) -> Difference:
    """One chunk, from its `exact_sums`."""
    count = int(numbers[0])
    return Difference(
        elements=elements,
        count=count,
        sum_abs=numbers[1],
        sum_square=numbers[2],
        min_abs=numbers[3],
        max_abs=numbers[4],
        reference_min=numbers[5],
        reference_max=numbers[6],
        reference_square=numbers[7],
        candidate_square=numbers[8],
        product=numbers[9],
        reference_nonfinite=int(numbers[10]),
        candidate_nonfinite=int(numbers[11]),
        mismatched=int(numbers[12]),
        peak_index=int(numbers[13]) if count else -1,
    )


def _largest(difference: Difference) -> float:
    """The largest magnitude of the reference's values."""
    return max(abs(difference.reference_min), abs(difference.reference_max))


def _rest(r: torch.Tensor, c: torch.Tensor) -> Difference | None:
    """The statistics without fills; None where there are no fills, or nothing else."""
    left = without_fills(to_float64(r.reshape(-1)), to_float64(c.reshape(-1)))
    if left is None:
        return None
    rest = Difference.of(*left)
    return rest.rest or rest
