"""Huge values that both sides have alike: fills of a mask, or of logits of no token.

They say nothing of the others, next to which any error of theirs is small. They are looked for only
in a tensor of which a few elements, taken at equal distances, show that there may be one.
"""

import math
from typing import Any

import numpy as np
import torch

# A fill is at least so large and so many times beyond all else; a tensor has at most so many.
_FILL, _FAR, _FILLS = 16.0, 32.0, 4
# What a coarser dtype makes of a fill is the same fill.
_ALIKE = 2.0**-8
# A sample is of about so many.
SAMPLED = 256


def may_have_fills(r: torch.Tensor, c: torch.Tensor, error: float, largest: float) -> bool:
    """Whether a sample shows few values that are near the largest, and errors may hide by it.

    Args:
        error: the largest absolute difference.
        largest: the largest magnitude of the reference's.
    """
    if not _may_hide(error, largest) or not (r.is_floating_point() and c.is_floating_point()):
        return False
    return shows_fills(_sample_of(r).cpu().numpy(), error, largest)


def _sample_of(r: torch.Tensor) -> torch.Tensor:
    stride = r.numel() // SAMPLED + 1
    if r.is_contiguous():
        sample = r.view(-1)[::stride]
    else:
        places = torch.arange(0, r.numel(), stride, device=r.device)
        sample = r[torch.unravel_index(places, r.shape)]
    return sample if sample.dtype == torch.float64 else sample.float()


def shows_fills(sample: np.ndarray[Any, Any], error: float, largest: float) -> bool:
    """The same as `may_have_fills`, from some of the reference's values at equal distances."""
    if not _may_hide(error, largest):
        return False
    values = np.abs(sample)
    near = values[(values > largest / _FAR) & (values <= largest)]
    return all(len(set(part.tolist())) <= _FILLS for part in (near[:16], near))


def _may_hide(error: float, largest: float) -> bool:
    return _FILL <= largest < math.inf and 0.0 < error <= largest


def without_fills(r: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The pairs that are no fills; None where there are no fills, or nothing else."""
    kept = r.isfinite() & c.isfinite()
    r, c = r[kept], c[kept]
    found = None
    least = math.inf
    for _ in range(_FILLS):
        fill = r[r.abs().argmax()].item()
        least = min(least, abs(fill))
        kept = (r != fill) | ((c - r).abs() > _ALIKE * abs(fill))
        r, c = r[kept], c[kept]
        if least < _FILL or not r.numel():
            break
        if float(r.abs().amax()) <= least / _FAR:
            found = r, c
    return found
