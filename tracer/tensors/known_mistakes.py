"""Names the known kinds of mistake that explain a diverging pair of tensors.

>>> known_mistakes(reference, reference.to(torch.bfloat16).float(), limit=1e-5)
[Fit('cast down to bfloat16 on the way', residual=0.0)]

Each is a cheap fit of the candidate by a changed reference. A fit is reported only when it is good:
what it leaves unexplained lies within the tolerance, or is a small part of the error. (A difference
at padded positions only is recognised earlier, when the pair is compared.)
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tracer.tensors.kinds import plain

# A fit must explain all but this part of the error (in the L2 norm), or all beyond the tolerance.
_UNEXPLAINED = 0.02
# Fits look at no more than this many elements: the leading ones along the first dimensions.
_MOST_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Fit:
    """A known kind of mistake that explains the divergence.

    Attributes:
        mistake: what it is, to be read after "the reference": "transposed", "scaled by 2".
        residual: relative L2 distance that is left between the candidate and the changed reference.
    """

    mistake: str
    residual: float


def known_mistakes(
    reference: torch.Tensor,
    candidate: torch.Tensor,
    limit: float,
) -> list[Fit]:
    """The mistakes that explain the difference of a pair, best first; empty if none does.

    Args:
        reference, candidate: one diverging pair; shapes may differ by a permutation.
        limit: the tolerance of the pair, as a PEIR.
    """
    reference, candidate = plain(reference), plain(candidate)
    if not (_is_real(reference) and _is_real(candidate)) or not reference.numel():
        return []
    r, c = reference.detach(), candidate.detach().to(reference.device)
    if r.shape != c.shape:
        return (
            _sorted(_permutations(r.double(), c.double()), limit, 1.0)
            if (r.numel() == c.numel() <= _MOST_ELEMENTS)
            else []
        )
    r, c = _leading(r, c)
    r, c = r.double(), c.double()
    if not bool(torch.isfinite(r).all()) or not bool(torch.isfinite(c).all()):
        return []
    error = _relative(c - r, r)
    if error == 0.0 or not math.isfinite(error):
        return []  # nothing to explain, or a reference of zeros that explains nothing
    fits = [fit for fitted in _FITS for fit in fitted(r, c)]
    return _sorted(fits, limit, error)


def _sorted(fits: "list[Fit] | Iterator[Fit]", limit: float, error: float) -> list[Fit]:
    good = [f for f in fits if f.residual <= max(min(limit, 0.1 * error), _UNEXPLAINED * error)]
    return sorted(good, key=lambda fit: fit.residual)


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided


def _leading(r: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first batch rows only, where the whole would be large."""
    if r.numel() > _MOST_ELEMENTS and r.dim() > 1 and r.shape[0] > 1:
        rows = max(_MOST_ELEMENTS * r.shape[0] // r.numel(), 1)
        return r[:rows], c[:rows]
    return r, c


def _relative(error: torch.Tensor, reference: torch.Tensor) -> float:
    norm = torch.linalg.vector_norm(reference).item()
    return torch.linalg.vector_norm(error).item() / norm if norm else float("inf")


def _constant_scale(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    square = (r * r).sum().item()
    if not square:
        return
    factor = (r * c).sum().item() / square
    words = "negated" if abs(factor + 1.0) < 1e-3 else f"scaled by {factor:.6g}"
    if factor:
        yield Fit(words, _relative(c - factor * r, c))


def _permutations(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    """Dimensions in another order, as they are or read on in the candidate's shape."""
    if not 2 <= r.dim() <= 4:
        return
    for order in itertools.permutations(range(r.dim())):
        if list(order) == sorted(order):
            continue
        moved = r.permute(order)
        if moved.shape == c.shape:
            words = "transposed" if r.dim() == 2 else f"permuted to dimensions {order}"
            yield Fit(words, _relative(c - moved, c))
        elif moved.numel() == c.numel():
            words = f"permuted to dimensions {order}, then read in the shape {list(c.shape)}"
            yield Fit(words, _relative(c - moved.reshape(c.shape), c))


def _permuted_channels(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    """The last dimension in another order, found by the norm and the sum of each channel."""
    if r.dim() < 2 or r.shape[-1] < 2:
        return
    r, c = r.reshape(-1, r.shape[-1]), c.reshape(-1, c.shape[-1])
    keys = [torch.linalg.vector_norm(t, dim=0) for t in (r, c)]
    order_r, order_c = keys[0].argsort(), keys[1].argsort()
    source = torch.empty_like(order_r)
    source[order_c] = order_r
    if bool((source == torch.arange(len(source), device=source.device)).all()):
        return
    moved = int((source != torch.arange(len(source), device=source.device)).sum())
    yield Fit(
        f"permuted along the last dimension ({moved} of {len(source)} channels moved)",
        _relative(c - r[:, source], c),
    )


def _shifted(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    """Moved by one position along a dimension; the position that fell in is not looked at."""
    for dim in range(max(r.dim() - 3, 0), r.dim()):
        length = r.shape[dim]
        if length < 4:
            continue
        for step in (1, -1):
            r_part = r.narrow(dim, max(-step, 0), length - 1)
            c_part = c.narrow(dim, max(step, 0), length - 1)
            words = f"shifted by {step:+d} along dimension {dim}"
            yield Fit(words, _relative(c_part - r_part, c_part))


def _constant_offset(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    """A missing or extra bias: one number per channel of the last dimension, or of dimension 1."""
    for dim in sorted({r.dim() - 1, 1}, reverse=True):
        others = [d for d in range(r.dim()) if d != dim]
        if not others or dim >= r.dim() or r.numel() // r.shape[dim] < 4:
            continue
        name = "channel" if dim == r.dim() - 1 else "channel of dimension 1"
        offset = (c - r).mean(dim=others, keepdim=True)
        same = bool(torch.allclose(offset, offset.flatten()[0].expand_as(offset), rtol=1e-3))
        words = (
            f"offset by {offset.flatten()[0].item():.4g} everywhere"
            if same
            else f"offset by a constant per {name}, as by a missing or wrong bias"
        )
        yield Fit(words, _relative(c - r - offset, r))


def _clipped(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    low, high = c.min().item(), c.max().item()
    beyond = int(((r < low) | (r > high)).sum())
    if beyond > 1 and low < high:
        # A value that is merely the extreme occurs once; a clipping limit is where many end up.
        rounding = 1e-5 * (high - low)
        at_limit = int(((c - low <= rounding) | (high - c <= rounding)).sum())
        if at_limit >= beyond:
            words = f"clipped to [{low:.4g}, {high:.4g}] ({beyond} elements lie beyond)"
            yield Fit(words, _relative(c - r.clamp(low, high), c))


def _one_slice(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    """All of the error in one channel, position or head: one index of one dimension."""
    square = (c - r) ** 2
    total = square.sum()
    for dim in reversed(range(r.dim())):
        if r.shape[dim] < 4:
            continue
        by_index = square.movedim(dim, 0).flatten(1).sum(dim=1) if r.dim() > 1 else square
        worst = int(by_index.argmax())
        rest = (total - by_index[worst]).clamp(min=0.0).sqrt().item()
        norm = torch.linalg.vector_norm(r).item()
        name = "channel" if dim == r.dim() - 1 else f"index of dimension {dim}"
        yield Fit(f"wrong in one {name} only, number {worst}", rest / norm if norm else 1.0)


def _cast_down(r: torch.Tensor, c: torch.Tensor) -> Iterator[Fit]:
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        name = str(dtype).removeprefix("torch.")
        yield Fit(f"cast down to {name} on the way", _relative(c - r.to(dtype).double(), r))


_FITS: tuple[Callable[[torch.Tensor, torch.Tensor], Iterator[Fit]], ...] = (
    _constant_scale,
    _permutations,
    _permuted_channels,
    _shifted,
    _constant_offset,
    _clipped,
    _one_slice,
    _cast_down,
)
