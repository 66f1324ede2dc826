"""Fingerprints: 176 bytes that stand for a tensor, and say how far another one is from it.

>>> x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
>>> estimate = Fingerprint.of(x).estimate(Fingerprint.of(1.01 * x))
>>> estimate.low < 0.01 < estimate.high
True

A fingerprint holds moments and 16 random projections. A projection is the sum of the elements, each
with a random sign; that of a difference has the expected square ||difference||^2, whatever the
tensor's size (N. Alon, Y. Matias, M. Szegedy, "The space complexity of approximating the frequency
moments", 1996). The signs depend on an element's place only, so that tensors of one shape can be
compared wherever they came from, and on no library's generator of random numbers, so that they are
the same everywhere and for good (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
generators", 2014).
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from tracer.tensors.difference import Difference
from tracer.tensors.kinds import plain
from tracer.tensors.leaves import LeftOut, dtype_name

PROJECTIONS = 16
# Elements per pass: the signs of one chunk take 4 MiB, and those of the first ones are kept.
_CHUNK = 32_768
_KEPT_CHUNKS = 16
# The sum of 16 squared projections over ||difference||^2 is distributed as chi-square with 16
# degrees of freedom, or closer to its mean: its quantiles at 0.05 % and 99.95 %.
_LEAST, _MOST = 3.5358, 41.308
# What the distance lies between, as a multiple of its estimate.
LEAST_OVER_ESTIMATE, MOST_OVER_ESTIMATE = (
    math.sqrt(PROJECTIONS / _MOST),
    math.sqrt(PROJECTIONS / _LEAST),
)
# Of norms and sums in float64, relative to the norms.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """How far two tensors are apart, by their fingerprints.

    Attributes:
        relative_l2: the estimate of ||r - c|| / ||r||.
        low, high: what it lies between in 99.9 % of cases, where it is above about 1e-12.
        cosine: the estimate of the cosine similarity.
        cosine_low, cosine_high: what that lies between as often.
    """

    relative_l2: float
    low: float
    high: float
    cosine: float
    cosine_low: float
    cosine_high: float


@dataclass(frozen=True, slots=True)
class Shown:
    """The fingerprint of the part of a tensor that is not padding.

    Attributes:
        where: which part, as `tracer.measurement.padding.Part` names it.
        fingerprint: of these elements.
    """

    where: str
    fingerprint: "Fingerprint"


@dataclass(frozen=True, kw_only=True)
class Fingerprint(LeftOut):
    """What is kept of a tensor.

    Attributes:
        shape, dtype: of the tensor.
        digest: 48 bits of a hash of its bytes.
        nonfinite: how many elements are NaN or infinite; all else is of the others. Real and
            imaginary parts of complex numbers count as elements.
        total, square: sum and sum of squares.
        least, most: the extremes; inf and -inf where there is none.
        projections: random projections; see the module's docstring.
        shown: what of it is not padding, where there is any; several where that is not certain.
    """

    reason: str = "only its fingerprint was recorded"
    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: int
    nonfinite: int
    total: float
    square: float
    least: float
    most: float
    projections: tuple[float, ...]
    shown: tuple[Shown, ...] = ()

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Fingerprint":
        """Takes the fingerprint of a tensor of any dtype in one pass."""
        total = square = 0.0
        least, most, nonfinite = math.inf, -math.inf, 0
        projections = np.zeros(PROJECTIONS)
        for number, values in enumerate(_chunks(tensor)):
            finite = np.isfinite(values)
            bad = values.size - int(finite.sum())
            shown = values[finite] if bad else values
            if shown.size:
                least, most = min(least, float(shown.min())), max(most, float(shown.max()))
            if bad:
                nonfinite += bad
                values = np.where(finite, values, 0.0)
            with np.errstate(over="ignore", invalid="ignore"):
                total += float(values.sum())
                square += float(np.dot(values, values))
                projections += values @ _signs(number)[: values.size]
        return cls(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            digest=int.from_bytes(_hash(tensor, 6), "little"),
            nonfinite=nonfinite,
            total=total,
            square=square,
            least=least,
            most=most,
            projections=tuple(projections.tolist()),
        )

    @classmethod
    def from_numbers(
        cls, numbers: list[float], shape: tuple[int, ...], dtype: torch.dtype
    ) -> "Fingerprint":
        """A fingerprint of the numbers that another one is made of."""
        digest, nonfinite, total, square, least, most, *projections = numbers
        return cls(
            shape=shape,
            dtype=dtype,
            digest=int(digest),
            nonfinite=int(nonfinite),
            total=total,
            square=square,
            least=least,
            most=most,
            projections=tuple(projections),
        )

    @property
    def numbers(self) -> list[float]:
        """What is stored of it beside shape and dtype: 22 numbers, exact in float64."""
        moments = [self.total, self.square, self.least, self.most]
        return [float(self.digest), float(self.nonfinite), *moments, *self.projections]

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {list(self.shape)}"

    def at(self, where: str) -> "Fingerprint | None":
        """The fingerprint of a part that is not padding; None if there is none of it."""
        return next((part.fingerprint for part in self.shown if part.where == where), None)

    def equals(self, other: "Fingerprint") -> bool:
        """Whether both are of equal values, of whatever dtype each."""
        return self.shape == other.shape and (
            (self.digest, self.dtype) == (other.digest, other.dtype)
            or self.numbers[1:] == other.numbers[1:]
        )

    def estimate(self, candidate: "Fingerprint") -> Estimate:
        """How far another tensor of the same shape is from this one."""
        squared, low, high = self._squared_distance(candidate)
        norms = math.sqrt(self.square), math.sqrt(candidate.square)
        relative = [_ratio(math.sqrt(value), norms[0]) for value in (squared, low, high)]
        cosines = [self._cosine(candidate, value) for value in (squared, high, low)]
        return Estimate(*relative, *cosines)

    def difference(self, candidate: "Fingerprint") -> Difference:
        """The statistics of the pair: those of differences are estimates.

        The mean and the largest difference are those of normally distributed ones, or what the
        moments say at least.
        """
        elements, finite = math.prod(self.shape), self._count(candidate)
        if self.equals(candidate):
            squared, peak = 0.0, 0.0
        else:
            squared, _, _ = self._squared_distance(candidate)
            spread = math.sqrt(squared / finite) if finite else 0.0
            tail = spread * math.sqrt(2.0 * math.log(2.0 * finite)) if finite else 0.0
            peak = max(min(tail, math.sqrt(squared)), self._least_peak(candidate))
        inexact = self.dtype.is_floating_point or self.dtype.is_complex
        mismatched = abs(self.nonfinite - candidate.nonfinite)
        if not inexact and not self.equals(candidate):
            mismatched = max(mismatched, 1)
        return Difference(
            elements=elements,
            count=finite,
            sum_abs=math.sqrt(2.0 / math.pi * squared * finite),
            sum_square=squared,
            min_abs=0.0,
            max_abs=peak,
            reference_min=self.least,
            reference_max=self.most,
            reference_square=self.square,
            candidate_square=candidate.square,
            product=0.5 * (self.square + candidate.square - squared),
            reference_nonfinite=self.nonfinite,
            candidate_nonfinite=candidate.nonfinite,
            mismatched=mismatched,
        )

    def _squared_distance(self, other: "Fingerprint") -> tuple[float, float, float]:
        """||r - c||^2: the estimate, and what it lies between."""
        if self.equals(other):
            return 0.0, 0.0, 0.0
        pairs = zip(self.projections, other.projections, strict=True)
        squares = math.fsum((r - c) ** 2 for r, c in pairs)
        norms = math.sqrt(self.square), math.sqrt(other.square)
        low, high = squares / _MOST, squares / _LEAST
        if not self.nonfinite and not other.nonfinite:
            # What holds without chance: the triangle, the extremes, and Cauchy and Schwarz.
            count = max(self._count(other), 1)
            least = max(
                abs(norms[0] - norms[1]),
                self._least_peak(other),
                abs(self.total - other.total) / math.sqrt(count),
            )
            low = max(low, max(least - _ROUNDING * sum(norms), 0.0) ** 2)
            high = max(low, min(high, (norms[0] + norms[1]) ** 2))
        return min(max(squares / PROJECTIONS, low), high), low, high

    def _least_peak(self, other: "Fingerprint") -> float:
        """The extremes of two tensors are no further apart than some pair of elements."""
        if math.isinf(self.least) or math.isinf(other.least):
            return 0.0
        return max(abs(self.least - other.least), abs(self.most - other.most))

    def _cosine(self, other: "Fingerprint", squared: float) -> float:
        norm = math.sqrt(self.square) * math.sqrt(other.square)
        if not norm:
            return float(self.square == other.square)
        return max(-1.0, min(1.0, 0.5 * (self.square + other.square - squared) / norm))

    def _count(self, other: "Fingerprint") -> int:
        parts = 2 if self.dtype.is_complex else 1
        return max(parts * math.prod(self.shape) - max(self.nonfinite, other.nonfinite), 0)


def checksum(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes, 16 hexadecimal digits."""
    return _hash(tensor, 8).hex()


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor in row-major order as bytes, little-endian."""
    values = plain(tensor).cpu().contiguous()
    if values.is_complex():
        values = torch.view_as_real(values).contiguous()
    return values.reshape(-1).view(torch.uint8).numpy().data


def _hash(tensor: torch.Tensor, size: int) -> bytes:
    return hashlib.blake2b(raw_bytes(tensor), digest_size=size).digest()


def _ratio(distance: float, norm: float) -> float:
    if distance == 0.0:
        return 0.0
    return distance / norm if norm else math.inf


def _chunks(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    """The elements in float64, 1-D pieces in row-major order."""
    values = plain(tensor).cpu()
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.numel():
        for chunk in values.reshape(-1).split(_CHUNK):
            yield chunk.to(torch.float64).numpy()


@lru_cache(maxsize=_KEPT_CHUNKS)
def _signs(chunk: int) -> np.ndarray:
    """Random signs of the elements of a chunk, float64 [_CHUNK, PROJECTIONS]; splitmix64."""
    index = np.arange(chunk * _CHUNK + 1, (chunk + 1) * _CHUNK + 1, dtype=np.uint64)
    z = index * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    bits = np.unpackbits(z.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :2], axis=1)
    return bits * 2.0 - 1.0
