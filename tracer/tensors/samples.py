"""Some pairs of a value's elements and the spread of its error: what a report draws of it.

Kept only where it is asked for, and bounded: at most N pairs, and the counts of a histogram.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tracer.errors import UsageError
from tracer.tensors.chunks import chunks
from tracer.tensors.difference import CHUNK, Difference
from tracer.tensors.kinds import plain

# How many pairs a report asks for, and the bars of a histogram: an odd number, so that one is at 0.
SAMPLES = 256
BINS = 41
# The pair that is farthest apart, and the extremes of the reference.
_FEWEST = 3


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Pairs of elements of one value, and the histogram of all its differences.

    Attributes:
        reference, candidate: float32 [pairs]; the pair that is farthest apart and the extremes of
            the reference are among them.
        counts: how many differences reference - candidate lie in each of `BINS` equal intervals
            from -reach to reach; those that are not finite in none.
        reach: the largest absolute difference.
    """

    reference: npt.NDArray[np.float32]
    candidate: npt.NDArray[np.float32]
    counts: tuple[int, ...]
    reach: float


class Sampler:
    """Takes the same elements of every value with as many of them, in every run.

    Args:
        most: how many pairs to take of one value.

    Raises:
        UsageError: too few to have the extremes among them.
    """

    def __init__(self, most: int) -> None:
        if most < _FEWEST:
            raise UsageError(f"samples {most}: expected how many pairs to keep, at least {_FEWEST}")
        self._most = most

    def sample(
        self, r: torch.Tensor, c: torch.Tensor, difference: Difference | None = None
    ) -> Sample | None:
        """Pairs of two tensors of one shape; None of complex numbers, and without finite pairs.

        Args:
            difference: that of all their elements, where it is known.
        """
        r, c = plain(r), plain(c).to(r.device)
        if difference is None:
            difference = Difference.of(r, c)
        if not difference.count or r.is_complex() or c.is_complex():
            return None
        places = self._places(r, difference.peak_index)
        picked = torch.unravel_index(places, r.shape)
        return Sample(
            reference=r[picked].float().cpu().numpy(),
            candidate=c[picked].float().cpu().numpy(),
            counts=_histogram(r, c, difference),
            reach=difference.max,
        )

    def _places(self, r: torch.Tensor, peak: int) -> torch.Tensor:
        """Flat indices, int64 [pairs], in row-major order and without repetition."""
        if r.numel() <= self._most:
            return torch.arange(r.numel(), device=r.device)
        generator = torch.Generator().manual_seed(0)
        random = torch.randint(r.numel(), (self._most,), generator=generator).to(r.device)
        wide = r.float()
        first = torch.stack([torch.tensor(peak, device=r.device), wide.argmin(), wide.argmax()])
        places: torch.Tensor = torch.cat([first, random[_FEWEST:]]).unique()
        return places


def _histogram(r: torch.Tensor, c: torch.Tensor, difference: Difference) -> tuple[int, ...]:
    counts = torch.zeros(BINS, dtype=torch.int64)
    if difference.max == 0.0:  # all are in the middle
        counts[BINS // 2] = difference.count
        return tuple(counts.tolist())
    finite = difference.count == difference.elements
    for r_part, c_part in chunks(r, c, CHUNK):
        d = r_part.double() - c_part.double()
        if not finite:
            d = d[d.isfinite()]
        share = d / difference.max  # from -1 to 1
        places = ((share + 1.0) * (BINS / 2)).long().clamp_(0, BINS - 1)
        counts += torch.bincount(places, minlength=BINS).cpu()
    return tuple(counts.tolist())
