"""What an accelerator computes of a pair of tensors while the host goes on.

    enqueued = Enqueued.of(reference, candidate)                     # nothing waits for the device
    Difference.read(enqueued, enqueued.numbers.tolist())             # here the host does

A few numbers of each chunk stay on the device until they are read, those of many pairs in one
transfer. Floats of at most 32 bits are summed up in float32 within a block and in float64 across
blocks; all else is computed in float64, and integers exactly.
"""

import math
from dataclasses import dataclass

import torch

from tracer.tensors.chunks import chunks, comparable
from tracer.tensors.exact import distance_of, fits_float32, is_inexact, to_float64
from tracer.tensors.fills import SAMPLED

# Elements per chunk, which bound the memory of a pass: of two temporaries in float32, or of ten in
# float64.
QUICK_CHUNK, EXACT_CHUNK = 1 << 23, 1 << 20
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The numbers of one pair.

    Attributes:
        numbers: float64 on the device of the reference: those of `quick_sums` or `exact_sums` for
            each chunk, then the sample.
        elements: of each chunk.
        is_quick: whether they are of `quick_sums`.
        is_sampled: whether a sample of the reference follows, which shows whether it has fills.
    """

    numbers: torch.Tensor
    elements: tuple[int, ...]
    is_quick: bool
    is_sampled: bool

    @classmethod
    def of(cls, reference: torch.Tensor, candidate: torch.Tensor) -> "Enqueued":
        """Begins to measure a pair, of which `Difference.of` says what it may be.

        Raises:
            ShapeMismatchError, UsageError: as `Difference.of` does.
        """
        r, c = comparable(reference, candidate)
        is_quick = fits_float32(r.dtype) and fits_float32(c.dtype) and r.numel() >= _BLOCK
        is_sampled = r.is_floating_point() and c.is_floating_point() and r.numel() > 0
        begin, size = (quick_sums, QUICK_CHUNK) if is_quick else (exact_sums, EXACT_CHUNK)
        pieces = list(chunks(r, c, size))
        numbers = [begin(*piece) for piece in pieces]
        if is_sampled:
            stride = r.numel() // SAMPLED + 1
            numbers.append(torch.cat([piece[::stride] for piece, _ in pieces]).double())
        elements = tuple(piece.numel() for piece, _ in pieces)
        together = torch.cat(numbers) if numbers else r.new_empty(0, dtype=torch.float64)
        return cls(together, elements, is_quick, is_sampled)


def quick_sums(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The `Sums` of one chunk, float64 [9]; they are not finite where values are not.

    Args:
        r, c: floats of at most 32 bits, [elements].
    """
    distances = r.float().sub(c).abs_()
    norms = torch.stack(
        [_norms(distances, 1), *(_norms(each, 2) for each in (distances, r, c))]
    ).double()
    norms[1:].square_()
    most, peak = distances.max(0)
    low, high = torch.aminmax(r)
    extremes = torch.stack([distances.amin(), most, low.float(), high.float()])
    return torch.cat([norms.sum(1), extremes.double(), peak.double().reshape(1)])


def _norms(values: torch.Tensor, order: int) -> torch.Tensor:
    """The norm of each block in float32, of the last one too, which may be shorter."""
    whole = values.numel() // _BLOCK * _BLOCK
    blocks = values[:whole].view(-1, _BLOCK), values[whole:].view(1, -1)
    return torch.cat(
        [
            torch.linalg.vector_norm(each, order, dim=1, dtype=torch.float32)
            for each in blocks
            if each.numel()
        ]
    )


def exact_sums(r: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The fields of a Difference of one chunk but `elements`, float64 [14], in their order.

    Args:
        r, c: of any dtype on any one device, [elements].
    """
    exact = not (is_inexact(r.dtype) or is_inexact(c.dtype))
    distance, unequal = distance_of(r, c)
    r, c = to_float64(r), to_float64(c)
    finite_r, finite_c = torch.isfinite(r), torch.isfinite(c)
    if r.is_complex() or c.is_complex():
        r, c = r.to(torch.complex128), c.to(torch.complex128)
    finite = finite_r & finite_c
    mismatched = unequal if exact else ~finite & unequal & ~(torch.isnan(r) & torch.isnan(c))
    # Where a pair is not finite it must leave no trace in any sum or extreme.
    d = torch.where(finite, distance, 0.0)
    r, c = torch.where(finite, r, 0.0), torch.where(finite, c, 0.0)
    parts = torch.view_as_real(r) if r.is_complex() else r.unsqueeze(-1)
    shown = finite.unsqueeze(-1)
    infinity = math.inf
    peak = torch.where(finite, distance, -infinity).argmax()
    return torch.stack(
        [
            finite.sum().double(),
            d.sum(),
            (d * d).sum(),
            torch.where(finite, distance, infinity).amin(),
            torch.where(finite, distance, -infinity).amax(),
            torch.where(shown, parts, infinity).amin(),
            torch.where(shown, parts, -infinity).amax(),
            (r.abs() ** 2).sum(),
            (c.abs() ** 2).sum(),
            (r * c.conj()).real.sum() if r.is_complex() else (r * c).sum(),
            (~finite_r).sum().double(),
            (~finite_c).sum().double(),
            mismatched.sum().double(),
            peak.double(),
        ]
    )
