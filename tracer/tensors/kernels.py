"""One pass over a pair of float32 arrays, compiled where numba is installed (the extra `fast`).

NumPy reads a chunk eleven times, if from cache; the compiled pass reads it once. It is loaded once
a process has compared so much that it pays, and takes large pairs alone: the last digits of a small
pair do not depend on what was compared before it.

Sums are of float32 within a block and of float64 across blocks. Extremes are taken of the bits as
integers, which have the same order, so that compilers can use vector instructions for them and no
NaN goes unseen: its bits are beyond those of infinity.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Loading numba and the compiled pass takes as long as NumPy needs for about so many elements.
WORTH_LOADING = 1 << 28
LARGE = 1 << 18  # elements of a pair
_BLOCK = 1024
_INFINITY = 0x7F80_0000

Array = np.ndarray[Any, np.dtype[Any]]


class Sums(NamedTuple):
    """What one pass over `reference` and `candidate` gives, with d = reference - candidate.

    Attributes:
        sum_abs, sum_square, reference_square, candidate_square: of |d|, d^2, r^2 and c^2.
        min_abs, max_abs, reference_min, reference_max: extremes of |d| and of the reference.
        peak: index of the first largest |d|.
    """

    sum_abs: float
    sum_square: float
    reference_square: float
    candidate_square: float
    min_abs: float
    max_abs: float
    reference_min: float
    reference_max: float
    peak: int


Pass = Callable[[Array, Array], Sums | None]


class Chooser:
    """Gives the pass of NumPy; for large pairs, once it pays, the compiled one if there is one."""

    def __init__(self) -> None:
        self._seen = 0
        self._looked = False
        self._pass: Pass = by_numpy

    def chosen(self, elements: int) -> Pass:
        """The pass to take for a further pair of so many elements."""
        if elements < LARGE:
            return by_numpy
        self._seen += elements
        if self._seen >= WORTH_LOADING and not self._looked:
            self._looked = True
            self._pass = compiled() or by_numpy
        return self._pass


def by_numpy(r: Array, c: Array) -> Sums | None:
    """The pass of NumPy, whose reductions carry no thread hand-over.

    Args:
        r, c: float32, [elements], at least one.

    Returns:
        None where a |d| is not finite.
    """
    with np.errstate(all="ignore"):
        d = np.subtract(r, c)
        np.abs(d, out=d)
        peak = int(d.argmax())
        if not d[peak] < np.inf:  # it is the first NaN, where there is one
            return None
        low, high = float(np.minimum.reduce(r)), float(np.maximum.reduce(r))
        square = float(np.dot(r, r))
        if not (most := float(d[peak])):  # as masks, positions and most arguments are
            return Sums(0.0, 0.0, square, square, 0.0, 0.0, low, high, 0)
        return Sums(
            sum_abs=float(np.add.reduce(d)),
            sum_square=float(np.dot(d, d)),
            reference_square=square,
            candidate_square=float(np.dot(c, c)),
            min_abs=float(np.minimum.reduce(d)),
            max_abs=most,
            reference_min=low,
            reference_max=high,
            peak=peak,
        )


def compiled() -> Pass | None:
    """The compiled pass, which returns what `by_numpy` does; None without numba.

    It takes bfloat16 too, whose bits are the upper half of a float32's: two arrays of uint16.
    """
    try:
        from numba import njit
    except ImportError:
        return None
    # The sums may be taken in any order; NaN and infinities keep their meaning.
    sums = njit(fastmath={"reassoc", "contract", "nsz"}, cache=True)(_sums)
    extremes = njit(cache=True)(_extremes)

    widen, first = njit(cache=True)(_widen), njit(cache=True)(_first)

    @njit  # type: ignore[untyped-decorator]
    def run(r: Any, c: Any, r_bits: Any, totals: Any) -> Any:  # pragma: no cover - is compiled
        distances = np.empty(_BLOCK, np.float32)
        bits = distances.view(np.int32)
        most, least, low, high, peak = _START
        for start in range(0, r.size, _BLOCK):
            end = min(start + _BLOCK, r.size)
            found = sums(r[start:end], c[start:end], distances)
            for each in range(4):
                totals[each] += found[each]
            own = extremes(bits, r_bits[start:end])
            least, low, high = min(least, own[1]), min(low, own[2]), max(high, own[3])
            if own[0] > most:
                most = own[0]
                peak = start + first(bits, most)
        return most, least, low, high, peak

    @njit  # type: ignore[untyped-decorator]
    def run_halves(r: Any, c: Any, totals: Any) -> Any:  # pragma: no cover - is compiled
        distances = np.empty(_BLOCK, np.float32)
        bits = distances.view(np.int32)
        r_bits, c_bits = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.int32)
        r_wide, c_wide = r_bits.view(np.float32), c_bits.view(np.float32)
        most, least, low, high, peak = _START
        for start in range(0, r.size, _BLOCK):
            size = min(_BLOCK, r.size - start)
            widen(r[start : start + size], r_bits)
            widen(c[start : start + size], c_bits)
            found = sums(r_wide[:size], c_wide[:size], distances)
            for each in range(4):
                totals[each] += found[each]
            own = extremes(bits, r_bits[:size])
            least, low, high = min(least, own[1]), min(low, own[2]), max(high, own[3])
            if own[0] > most:
                most = own[0]
                peak = start + first(bits, most)
        return most, least, low, high, peak

    def one_pass(r: Array, c: Array) -> Sums | None:
        totals = np.zeros(4)
        if r.dtype == np.uint16:
            most, least, low, high, peak = run_halves(r, c, totals)
        else:
            most, least, low, high, peak = run(r, c, r.view(np.int32), totals)
        if most >= _INFINITY:
            return None
        ends = np.array([least, most, _from_key(low), _from_key(high)], np.int32).view(np.float32)
        return Sums._make((*totals.tolist(), *ends.tolist(), peak))

    return one_pass


# Before any element: largest and least bits of |d|, lowest and highest key of r, and the peak.
_START = (np.int32(-1), np.int32(0x7FFFFFFF), np.int32(0x7FFFFFFF), np.int32(-0x80000000), 0)


def _widen(halves: Any, bits: Any) -> None:
    """Bits of float32, from those of bfloat16."""
    for place in range(halves.size):
        bits[place] = np.int32(halves[place]) << np.int32(16)


def _first(bits: Any, wanted: Any) -> Any:
    """Where these bits stand first."""
    for place in range(bits.size):
        if bits[place] == wanted:
            return place
    return -1


def _sums(r: Any, c: Any, distances: Any) -> Any:
    """Sums of |d|, d^2, r^2 and c^2 of one block, whose |d| it writes down."""
    zero: Any = np.float32(0)
    total, square, of_r, of_c = zero, zero, zero, zero
    for place in range(r.size):
        a, b = r[place], c[place]
        d = np.abs(a - b)
        distances[place] = d
        total += d
        square += d * d
        of_r += a * a
        of_c += b * b
    return total, square, of_r, of_c


def _extremes(bits: Any, r_bits: Any) -> Any:
    """Largest and smallest bits of |d|, smallest and largest key of r, of one block."""
    most: Any = np.int32(-1)
    least: Any = np.int32(0x7FFFFFFF)
    low: Any = np.int32(0x7FFFFFFF)
    high: Any = np.int32(-0x80000000)
    for place in range(r_bits.size):
        d, own = bits[place], r_bits[place]
        key = own ^ ((own >> np.int32(31)) & np.int32(0x7FFFFFFF))  # in the order of the numbers
        most, least = max(most, d), min(least, d)
        low, high = min(low, key), max(high, key)
    return most, least, low, high


def _from_key(key: int) -> int:
    """The bits of a number again."""
    return key if key >= 0 else key ^ 0x7FFFFFFF
